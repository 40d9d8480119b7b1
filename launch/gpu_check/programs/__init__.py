"""Programs of launch/gpu-check, run by the virtual environment's Python: they import what is installed there.

Each is a module to be run, takes --answer FILE, and writes its answer there as JSON; with several ranks, rank 0 does.
"""
