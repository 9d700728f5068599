"""Figures of a comparison as Vega-Lite charts: one specification for the page and for the files for papers."""
