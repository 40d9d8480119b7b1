"""What is taken for a failure of a GPU or of memory, and what is said then."""

import pytest
import torch

from resist_hvd.data.files import gpu_faults

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def of_dali(said: str) -> RuntimeError:
    """An error as DALI's executor words it."""
    return RuntimeError(
        "Critical error in pipeline:\nError in MIXED operator `nvidia.dali.fn.decoders.image_slice`,\nwhich was used "
        "in the pipeline definition with the following traceback:\n\n"
        '  File "/home/out of memory/CUDA error/dali_graph.py", line 120, in training_pipeline\n'
        "    images = fn.decoders.image_slice(encoded)  # cannot allocate\n\n"
        f"encountered:\n\n{said}\nCurrent pipeline object is no longer valid."
    )


MEMORY = [
    of_dali("Can't allocate 201326592 bytes on device 0."),
    of_dali("CUDA allocation failed"),
    of_dali("Error in thread 3: [/opt/dali/dali/core/x.cc:12] CUDA runtime API error cudaErrorMemoryAllocation (2):\n"
            "out of memory\nStacktrace (9 entries):\n[frame 0]: /lib/libdali.so(+0x1) [0x1]"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB"),
    MemoryError("std::bad_alloc"),
    MemoryError(),
]  # fmt: skip

DEVICE = [
    of_dali("CUDA runtime API error cudaErrorIllegalAddress (700):\nan illegal memory access was encountered"),
    of_dali("CUDA driver API error CUDA_ERROR_DEINITIALIZED (4)"),
    of_dali("nvml: NVIDIA driver is not loaded"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
]

IMAGES = [
    of_dali("Failed to decode sample #3 : /data/cuda/train/n01440764/x.JPEG"),
    of_dali("[/opt/dali/dali/util/file.cc:9] Could not open file /data/nvml/x.JPEG: No such file or directory"),
    of_dali("Unrecognized image format. Supported formats are: JPEG, PNG"),
    RuntimeError("an image is too large"),
]


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: gpu_faults.gist(error)[:30])
def test_memory_is_called_memory(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_faults.is_of_gpu(error)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**29, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60 * 2**30)
    said = str(gpu_faults.sentence(error, GPU))
    for fact in (
        "GPU memory",
        "80.0 GiB",
        "PyTorch holds 60.0",
        "19.5",
        "0.5 are free",
        "--data.batch_size",
        "nvidia-smi",
    ):
        assert fact in said
    assert gpu_faults.gist(error) in said
    assert "GPU" not in str(gpu_faults.sentence(error, CPU)).partition("(")[0]


def test_pinned_memory_is_the_hosts() -> None:
    said = str(gpu_faults.sentence(of_dali("Can't allocate 4096 bytes on host."), GPU))
    assert said.startswith("Memory ran out while images were decoded (Can't allocate 4096 bytes on host.)")


@pytest.mark.parametrize("error", DEVICE, ids=lambda error: gpu_faults.gist(error)[:30])
def test_a_gpu_that_failed_is_called_that(error: BaseException) -> None:
    assert gpu_faults.is_of_gpu(error)
    said = str(gpu_faults.sentence(error, GPU))
    for fact in ("The GPU failed", "no image is to blame", gpu_faults.gist(error), "nvidia-smi", "--resume"):
        assert fact in said


@pytest.mark.parametrize("error", IMAGES, ids=lambda error: gpu_faults.gist(error)[:30])
def test_what_is_said_of_an_image_is_not_taken_for_the_gpus(error: BaseException) -> None:
    assert not gpu_faults.is_of_gpu(error)


def test_a_gist_is_short_and_without_stacks() -> None:
    assert gpu_faults.gist(MEMORY[0]) == "Can't allocate 201326592 bytes on device 0."
    assert gpu_faults.gist(MEMORY[2]) == "CUDA runtime API error cudaErrorMemoryAllocation (2): out of memory"
    assert gpu_faults.gist(MemoryError()) == "MemoryError"
    assert len(gpu_faults.gist(RuntimeError("word " * 200))) == 200


def test_a_batch_that_fails_while_its_images_do_not_is_most_likely_short_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**29, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60 * 2**30)
    said = str(gpu_faults.unexplained(IMAGES[0], GPU))
    for fact in ("decodes each of its images by itself", "PyTorch holds 60.0", "sample #3", "--data.batch_size"):
        assert fact in said
    assert gpu_faults.unexplained(IMAGES[0], CPU) is IMAGES[0]


def test_a_gpu_that_does_not_answer_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> tuple[int, int]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    assert gpu_faults.holders(GPU) == ""
