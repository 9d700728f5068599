"""Augmentations change a training image after its crop. A new one is a file here, or a class in your own package."""
