"""What is compared does the same work: the same images, first weights and arithmetic, and it counts its bytes."""

import json
import socket
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from resist_hvd.benchmarks import compare
from resist_hvd.benchmarks.candidates import make
from resist_hvd.benchmarks.kernel import PeakMemory, sent_by_host
from resist_hvd.benchmarks.rivals import process_group
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.protocol.exchange import ring_bytes
from resist_hvd.settings.bench import CompareSettings
from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.optim import OptimSettings

from . import tiny

SETTINGS = CompareSettings(
    local_iterations=2,
    rounds=2,
    repeats=1,
    rows="pytorch-ddp,data-parallel,local-sgd,resist,resist+int8+overlap1",
    min_blocks=3,
    model=ModelSettings(sections="1,1,6,1", width_factor=1 / 16),
    data=DataSettings(batch_size=8, image_size=16, calibration_images=64),
    optim=OptimSettings(lr=0.05),
)


MOMENTUM = OptimSettings(lr=0.05, momentum=0.9)
EVERYTHING = OptimSettings(name="adamw", lr=0.01, eps=1e-2, label_smoothing=0.2, clip_norm=0.5)


def trained(name: str, world: World, optim: OptimSettings, rounds: int = 2) -> tuple[torch.Tensor, int]:
    """The weights that a candidate has after some rounds, and the bytes it counted."""
    settings = replace(SETTINGS, optim=optim)
    # Images of noise: the margins of digits are all alike, and a norm of what is all alike is rounding errors.
    candidate = make(name, settings, world, tiny.source(settings, rank=world.rank, size=world.size))
    for _ in range(rounds):
        waited = candidate.round()
        assert waited is None if name.startswith("pytorch") else waited is not None and waited >= 0
    sent, weights = candidate.sent, candidate.trained().subnet.parameters_flat.clone()
    assert candidate.arithmetic() > 0
    # It sends nothing, and trains nothing that counts.
    assert candidate.sent == sent
    assert torch.equal(candidate.trained().subnet.parameters_flat, weights)
    return weights, sent


@pytest.mark.parametrize(
    ("ours", "theirs", "averages", "optim"),
    [
        ("data-parallel", "pytorch-ddp", 4, MOMENTUM),
        ("data-parallel", "pytorch-ddp", 4, EVERYTHING),
        # Ours restarts momentum after each average, PyTorch's keeps it.
        ("local-sgd", "pytorch-post-local-sgd", 2, replace(MOMENTUM, momentum=0.0)),
    ],
    ids=["ddp", "ddp-by-adamw-clipped-and-smoothed", "post-local-sgd"],
)
def test_pytorchs_own_ends_where_ours_does(
    ours: str, theirs: str, averages: int, optim: OptimSettings, world: World
) -> None:
    with process_group(world, None) as backend:
        assert backend == "gloo"
        (mine, counted), (pytorchs, bytes_of_theirs) = (trained(name, world, optim) for name in (ours, theirs))
    first, _ = trained(ours, world, optim, rounds=0)
    assert (pytorchs - mine).norm() < 1e-3 * (mine - first).norm()
    expected = averages * ring_bytes(mine.nbytes, world.size)
    assert counted == pytest.approx(expected, abs=100)
    assert bytes_of_theirs == pytest.approx(expected, abs=100)


def test_a_comparison(world: World, folder: Path, capsys: Any) -> None:
    path = folder / "compared.json"
    ratio = compare.run(replace(SETTINGS, json=path), world)
    assert ratio > 0
    if not world.is_first:
        return
    printed = capsys.readouterr().out
    measured = json.loads(path.read_text())["measured"]
    assert list(measured) == SETTINGS.names
    for name, (once,) in measured.items():
        assert name in printed
        assert 0 <= once["seconds_communication"] <= once["seconds_step"]
        assert once["seconds_arithmetic"] > 0
        assert (once["seconds_hidden"] > 0) == ("overlap" in name)
        assert 0 < once["accuracy"] < 100
        assert (once["bytes_counted"] > 0) == (world.size > 1)
    if world.size > 1:
        sent = {name: once["bytes_counted"] for name, (once,) in measured.items()}
        assert sent["resist"] < sent["local-sgd"] < sent["data-parallel"]
        assert sent["resist+int8+overlap1"] < 0.3 * sent["resist"]
        # Gloo's messages go through the loopback; what MPI shares in memory goes nowhere.
        ddp = measured["pytorch-ddp"][0]
        assert ddp["bytes_loopback"] > ddp["bytes_counted"]


class Forgetful:
    """A candidate whose first round ever makes something large that stays, as libraries do."""

    kept: ClassVar[list[torch.Tensor]] = []
    sent, hidden = 0, 0.0

    def __init__(self) -> None:
        self._own = torch.ones(4 * 2**20)

    def round(self) -> float:
        if not self.kept:
            self.kept.append(torch.ones(16 * 2**20))
        return 0.0

    def arithmetic(self) -> float:
        return 1.0


def test_memory_does_not_hang_on_the_order(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if PeakMemory(world.device).above() is None:
        pytest.skip("this kernel does not set a process's peak anew")
    seen: dict[str, list[Any]] = {}
    monkeypatch.setattr(compare, "make", lambda *_: Forgetful())
    monkeypatch.setattr(compare, "show", lambda settings, world, backend, measured: seen.update(measured))
    try:
        compare.run(replace(SETTINGS, evaluate=False, rows="resist,local-sgd"), world)
    finally:
        Forgetful.kept.clear()
    if world.is_first:
        for (once,) in seen.values():
            assert once.memory == pytest.approx(16 * 2**20, rel=0.2)


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "make", lambda *_: pytest.fail("something was measured"))
    with pytest.raises(UserError, match="No such file or directory") as caught:
        compare.run(replace(SETTINGS, json=folder / "missing" / "compared.json"), world)
    assert caught.value.everywhere


def test_averages_stay_in_the_storage_that_parameters_had(world: World) -> None:
    settings = replace(SETTINGS, optim=replace(SETTINGS.optim, momentum=0.0))
    with process_group(world, None), warnings.catch_warnings():
        warnings.simplefilter("error")  # DistributedDataParallel warns of gradients that must be copied
        source = tiny.source(settings, rank=world.rank, size=world.size)
        candidate = make("pytorch-post-local-sgd", settings, world, source)
        parameters = list(candidate._network.parameters())  # type: ignore[attr-defined]
        before = [(parameter.data_ptr(), parameter.stride()) for parameter in parameters]
        for _ in range(2):
            candidate.round()
        assert [(parameter.data_ptr(), parameter.stride()) for parameter in parameters] == before


def test_the_kernels_count_of_bytes() -> None:
    before = sent_by_host()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver = server.accept()[0]
        with receiver:
            sender.sendall(bytes(2**16))
            receiver.recv(2**16, socket.MSG_WAITALL)
    sent = sent_by_host().since(before)
    assert sent.loopback > 2**16


def test_peak_memory_is_what_is_above_before(world: World) -> None:
    peak = PeakMemory(world.device)
    if peak.above() is None:
        pytest.skip("this kernel does not set a process's peak anew")
    block = torch.ones(8 * 2**20)
    del block
    grown = peak.above()
    assert grown is not None
    assert grown == pytest.approx(32 * 2**20, rel=0.25)
