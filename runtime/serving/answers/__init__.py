"""An answer, from the queue to the bytes of the response."""
