"""The vision graph: tower, projector and selection."""
