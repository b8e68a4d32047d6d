"""References, registries, content store, layers and snapshots."""
