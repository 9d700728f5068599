"""Computes what a comparison shows: metrics with intervals, curves, budgets, and warnings on fairness."""
