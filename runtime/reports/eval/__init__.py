"""Accuracy through the engines: data in, answers logged, a report of what each keep costs."""
