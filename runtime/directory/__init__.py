"""The engine directory: its manifest, files and limits."""
