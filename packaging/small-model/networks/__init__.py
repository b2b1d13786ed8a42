"""Wan2.1 image-to-video at small sizes."""
