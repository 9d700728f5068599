"""Trackers: where the metrics of a run are written while it runs."""
