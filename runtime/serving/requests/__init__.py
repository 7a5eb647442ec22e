"""A request, from its bytes to what the pipeline takes."""
