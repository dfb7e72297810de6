"""Generator, discriminator, frozen features, and the import of the published weights."""
