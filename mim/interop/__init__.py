"""Interop: weights from elsewhere, and to elsewhere."""
