"""References, registries, content store, layers and snapshots."""

from guest_agent.images.store import Image, ImageStore

__all__ = ["Image", "ImageStore"]
