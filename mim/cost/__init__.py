"""Cost: parameters, operations and memory of a model."""
