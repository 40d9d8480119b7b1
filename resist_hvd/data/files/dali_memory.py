"""Batches of NVIDIA DALI as PyTorch's tensors."""

from typing import Any

import torch
from nvidia.dali.plugin.pytorch import feed_ndarray, to_torch_type
from torch import Tensor
from torch.utils.dlpack import from_dlpack


def as_tensor(images: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a batch that a dynamic pipeline put out for the current stream, as a tensor of another type.

    On a CPU it is DALI's own memory where the type is DALI's. On a GPU it is copied within the current stream, and
    nobody waits but streams: this one for the batch, and DALI's for the copy before its memory serves another batch.
    (A view of DALI's memory would save the copy. But when it is let go, a thread of DALI waits until the whole GPU is
    idle: that takes a core of its own beside training, and spoils the recording of CUDA graphs.)

    Args:
        images: a `TensorListCPU` or `TensorListGPU`, of one shape.
        dtype: of the tensor.
        device: where the batch is.
    """
    dense = images.as_tensor()
    if device.type == "cpu":
        view: Tensor = from_dlpack(dense)
        return view.to(dtype)
    copy = torch.empty(tuple(dense.shape()), dtype=to_torch_type[dense.dtype], device=device)
    feed_ndarray(dense, copy, cuda_stream=torch.cuda.current_stream(device))
    return copy.to(dtype)
