"""Reports of runs, from their folders, as a page, pictures and a table; nothing here needs PyTorch or MPI."""
