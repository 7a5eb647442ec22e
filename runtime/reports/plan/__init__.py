"""Predict the memory of a model from its shape alone (docs/memory.md)."""
