"""What a config would cost on a cluster, before it is paid for: a simulation that starts nothing."""
