"""launch/gpu-check: what a machine's GPUs do in this project's hands, in ten steps.

The steps run this project's own programs as child processes, and judge what those write. Everything here but
`programs` is on the standard library alone, so that any Python starts it.
"""
