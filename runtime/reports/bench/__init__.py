"""Measuring what pruning buys: timings, memory and agreement, kept ratios side by side."""
