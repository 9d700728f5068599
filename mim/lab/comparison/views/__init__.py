"""Shows a comparison: as a page, as CSV files and in a terminal."""
