"""The engine: one trainer that drives any task, on one device or many."""
