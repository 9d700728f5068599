"""Data sets on object stores: read by position, through a bounded cache on this machine."""
