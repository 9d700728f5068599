"""Tasks: what one step and one evaluation mean."""
