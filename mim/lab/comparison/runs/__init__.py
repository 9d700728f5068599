"""Reads run folders: what each run is, where it came from, and which runs belong together."""
