"""Decoding: from a file's bytes to an image in its stored type."""
