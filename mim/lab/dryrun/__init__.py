"""Dry runs: training steps on no data, or on no memory, for what they cost."""
