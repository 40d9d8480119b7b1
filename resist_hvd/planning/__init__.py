"""Forecasts of what a run will cost; nothing here needs PyTorch, MPI or the network itself."""
