"""A GPU without torch: memory, streams, graphs and two small kernels, through cuda-python."""
