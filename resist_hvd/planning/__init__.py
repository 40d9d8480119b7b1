"""What a run will cost, worked out before it is paid for; nothing here needs PyTorch, MPI or the network itself."""
