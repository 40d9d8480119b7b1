"""The training loop and what serves it: optimizer, evaluation, checkpoints, account, journal, export."""
