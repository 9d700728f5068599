"""Sources: one file for each format in which images lie."""
