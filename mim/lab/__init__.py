"""The lab: what looks at runs and never changes training."""
