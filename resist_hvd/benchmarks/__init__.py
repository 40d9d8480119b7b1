"""Benchmarks, one a module: each measures what it compares in one run, in turn, and prints medians and spreads."""
