"""``divprune-build``: from the graphs of an engine directory to TensorRT engines in it."""
