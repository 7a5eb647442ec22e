"""Measurements and predictions: benchmark, evaluation, memory plan, kept patches."""
