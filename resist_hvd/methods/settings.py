"""The names of what can be chosen of a method, apart from the methods, so that naming one loads no MPI."""

from typing import Literal

MethodName = Literal["resist", "local-sgd", "data-parallel", "ensemble"]
Momentum = Literal["restart", "keep"]
