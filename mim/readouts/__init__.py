"""Readouts: from an encoder's features to an answer."""
