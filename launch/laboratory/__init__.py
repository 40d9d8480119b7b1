"""A cluster in a box: hosts made of namespaces, links shaped by the kernel, a real SLURM. Standard library alone."""
