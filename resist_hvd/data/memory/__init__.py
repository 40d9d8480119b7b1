"""Data sets that lie in memory."""
