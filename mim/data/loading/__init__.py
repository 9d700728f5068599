"""Loading: samples, their order, and batches of them."""
