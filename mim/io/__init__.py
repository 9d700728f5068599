"""Files and texts: reading and writing them safely, and what messages show of them."""
