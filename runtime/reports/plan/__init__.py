"""What a model will need in memory, predicted from its shape alone (docs/memory.md)."""
