"""The engine directory as it is written: staged, hashed, described."""
