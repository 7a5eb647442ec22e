"""The checkpoint: its config, tensors and quantised weights, read a tensor at a time."""
