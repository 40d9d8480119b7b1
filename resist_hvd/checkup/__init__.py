"""Checks of `doctor`: one rank's view of its machine, and what all views together say must be mended."""
