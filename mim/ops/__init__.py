"""Tensor operations that several parts share: patches, positions, attention, resampling, seeds, intervals."""
