"""Reading and writing files safely, and formatting values for messages."""
