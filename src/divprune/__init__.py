"""Visual-token pruning inside deployed vision-language models.

The packages are the top-level folders of the repository, linked here under one import name.
"""
