"""Models that are made here, each in a folder of its own with what it takes to make it again."""
