"""Data: where images come from, and how they reach the device. A new source is a file in mim/data/sources."""
