"""Dry runs: training steps on random images, or on fake tensors, to measure what a step costs."""
