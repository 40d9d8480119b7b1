"""Theorem 3.1 of the paper, measured: convergence of ResIST on a wide residual network, in one process."""
