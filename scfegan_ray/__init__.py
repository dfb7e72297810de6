"""SC-FEGAN on Ray: from raw face photographs to a registered editing model."""
