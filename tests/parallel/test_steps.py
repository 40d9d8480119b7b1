"""A step is the same compiled, or on tensors that stay where they are; and to prepare it changes and counts nothing."""

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from resist_hvd import stopwatch
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.methods.state import FlatState
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training import loop, rounds
from resist_hvd.training.run import Run
from resist_hvd.training.step import GraphStep, StaticStep, Step, flat_state

from . import tiny

ADAMW = OptimSettings(name="adamw", lr=0.01, weight_decay=0.1, clip_norm=1.0)
EVERYTHING = OptimSettings(lr=0.1, nesterov=True, clip_norm=1.0, label_smoothing=0.1)
CASES = [
    pytest.param({}, id="resist"),
    pytest.param({"min_blocks": 3, "momentum": "keep"}, id="shared-blocks-and-momentum-kept"),
    pytest.param({"warmup_epochs": 1 / 8, "iterations": 7, "optim": EVERYTHING}, id="handed-over-and-a-short-round"),
    pytest.param({"method": "local-sgd", "precision": "bf16"}, id="local-sgd-in-bf16"),
    pytest.param({"method": "ensemble", "optim": OptimSettings(momentum=0.0)}, id="ensemble-without-momentum"),
    pytest.param({"optim": ADAMW, "min_blocks": 3}, id="adamw"),
    pytest.param({"optim": ADAMW, "momentum": "keep", "warmup_epochs": 1 / 8}, id="adamw-kept-and-handed-over"),
]


def trained(settings: Settings, world: World, folder: Path) -> Run:
    """A run at its end, or resumed to it."""
    run = tiny.make_stored_run(replace(settings, output=folder), world)
    loop.train(run, tiny.Watching(run))
    return run


def buffers_of(state: FlatState) -> list[Tensor]:
    return [*state.buffers.values(), state.steps]


def bits(tensor: Tensor) -> Tensor:
    """A tensor's numbers bit by bit: a zero and a negative zero are different."""
    return tensor.view(torch.int32)


@pytest.mark.parametrize("changes", CASES)
def test_a_static_step_is_the_plain_one_to_the_bit(
    changes: dict[str, Any], world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(world, evaluate_every=1, **changes)
    plain = trained(settings, world, folder / "plain")
    monkeypatch.setattr(loop, "make_step", StaticStep)
    static = trained(settings, world, folder / "static")
    assert torch.equal(bits(static.method.subnet.parameters_flat), bits(plain.method.subnet.parameters_flat))
    one, other = flat_state(static), flat_state(plain)
    assert one.fresh == other.fresh
    if settings.optim.momentum and not other.fresh:
        for mine, theirs in zip(buffers_of(one), buffers_of(other), strict=True):
            assert torch.equal(bits(mine), bits(theirs))
    if world.is_first:
        for name in ("rounds.jsonl", "eval.jsonl"):
            assert tiny.timeless_lines(static.folder / name) == tiny.timeless_lines(plain.folder / name)


@pytest.mark.parametrize("kind", [Step, StaticStep])
@pytest.mark.parametrize("method", ["resist", "data-parallel"])
@pytest.mark.parametrize("optim", [OptimSettings(), ADAMW], ids=["sgd", "adamw"])
def test_to_prepare_changes_nothing_that_is_trained_or_sent(
    kind: type[Step], method: Any, optim: OptimSettings, world: World, folder: Path
) -> None:
    if (kind, method) == (StaticStep, "data-parallel"):
        pytest.skip("a static step does not communicate")
    run = tiny.make_run(tiny.settings(world, method=method, optim=optim), world, folder)
    images, labels = next(run.source.train())
    subnet, state = run.method.subnet, flat_state(run)
    for buffer in buffers_of(state):
        buffer.uniform_()
    state.fresh = False
    before = subnet.parameters_flat.clone(), [buffer.clone() for buffer in buffers_of(state)], run.method.transport.sent
    making = kind(run)
    making.prepare(images, labels)
    assert torch.equal(bits(subnet.parameters_flat), bits(before[0]))
    assert all(torch.equal(bits(now), bits(then)) for now, then in zip(buffers_of(state), before[1], strict=True))
    assert (state.fresh, run.method.transport.sent, run.progress.samples) == (False, before[2], 0)
    making(images, labels, 0.1)
    assert not torch.equal(subnet.parameters_flat, before[0])


def test_what_preparing_takes_is_no_rounds_time(world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Time stands still, but where a step is prepared.
    now = 0.0

    def prepare(self: Step, images: Tensor, labels: Tensor) -> None:
        nonlocal now
        now += 30.0

    for module in (rounds, stopwatch):
        monkeypatch.setattr(module, "perf_counter", lambda: now)
    monkeypatch.setattr(Step, "prepare", prepare)
    monkeypatch.setattr(Step, "is_prepared", property(lambda self: self.ready, lambda self, _: None), raising=False)
    monkeypatch.setattr(Step, "ready", False, raising=False)
    run = trained(tiny.settings(world, warmup_epochs=1 / 8), world, folder / "run")
    assert now > 0
    assert run.progress.seconds == 0
    if world.is_first:
        lines = [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]
        assert [line["seconds_prepare"] for line in lines] == [60.0] * len(lines)


CAPTURE = inspect.signature(torch.cuda.graph)


class Recorder(TorchDispatchMode):
    """Records what PyTorch is told to compute, with its arguments, as CUDA records kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert call is not torch.ops.aten._local_scalar_dense.default, "a number is read, which CUDA forbids"
        result = call(*args, **(kwargs or {}))
        self.calls.append((call, args, kwargs or {}, result))
        return result


class FakeGraph:
    """Stands for a CUDA graph where there is no CUDA: a capture has no effects, and a replay repeats its computations.

    So all else that Python decides is decided once, as in a CUDA graph.
    """

    captured: ClassVar[list["FakeGraph"]] = []

    @torch.no_grad()
    def replay(self) -> None:
        made: dict[int, Tensor] = {}

        def now(value: Any) -> Any:
            return made.get(id(value), value)

        for call, args, kwargs, recorded in self.recorder.calls:
            result = call(*tree_map(now, args), **tree_map(now, kwargs))
            for then, again in zip(tree_leaves(recorded), tree_leaves(result), strict=True):
                made[id(then)] = again

    @contextmanager
    def capture(self, stream: Any, capture_error_mode: str) -> Iterator[None]:
        CAPTURE.bind(self, stream=stream, capture_error_mode=capture_error_mode)
        subnet = self.step._method.subnet
        buffers = [subnet.parameters_flat, subnet.gradients_flat, *buffers_of(self.step._state)]
        before = [buffer.clone() for buffer in buffers]
        self.recorder = Recorder()
        with self.recorder:
            yield
        for buffer, content in zip(buffers, before, strict=True):
            buffer.copy_(content)
        FakeGraph.captured.append(self)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[GraphStep]:
    """The steps that are captured, on what stands for CUDA; they are to be made by `loop.make_step`."""
    made: list[GraphStep] = []

    def make_step(run: Run) -> GraphStep:
        made.append(GraphStep(run))
        FakeGraph.step = made[-1]
        return made[-1]

    monkeypatch.setattr(loop, "make_step", make_step)
    FakeGraph.captured.clear()
    standing_in = {"CUDAGraph": FakeGraph, "graph": FakeGraph.capture, "stream": lambda _: nullcontext()}
    for name, value in {**standing_in, "Stream": Mock(), "current_stream": Mock()}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


@pytest.mark.parametrize("optim", [EVERYTHING, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("momentum", ["restart", "keep"])
def test_each_network_is_captured_once_and_trains_as_without(
    optim: OptimSettings, momentum: Any, steps: list[GraphStep], world: World, folder: Path
) -> None:
    settings = tiny.settings(world, iterations=7, warmup_epochs=1 / 8, evaluate_every=1, optim=optim, momentum=momentum)
    captured = trained(settings, world, folder / "captured")
    assert len(steps) == len(FakeGraph.captured) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_step", Step)
        plain = trained(settings, world, folder / "plain")
    assert torch.equal(bits(captured.method.subnet.parameters_flat), bits(plain.method.subnet.parameters_flat))


def test_a_capture_that_fails_is_told_by_all(
    steps: list[GraphStep], world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def refused(*_: Any, **__: Any) -> Iterator[None]:
        yield
        raise RuntimeError(
            "CUDA error: operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA"
        )

    if world.is_first:
        monkeypatch.setattr(torch.cuda, "graph", refused)
    with pytest.raises(UserError, match="not permitted when stream is capturing") as caught:
        trained(tiny.settings(world), world, folder / "run")
    assert "rank 0" in caught.value.where or world.size == 1
    assert "--cuda_graphs" in caught.value.mend


def test_what_keeps_a_network_from_being_compiled_is_told(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailedError(RuntimeError):
        __module__ = "torch._dynamo.exc"
        inner_exception = RuntimeError("C++ compile error\n\ng++ -c\nno Python.h\n")

    def fails(*_: Any) -> Tensor:
        raise FailedError

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with pytest.raises(UserError, match=r"cannot be compiled: C\+\+ compile error ... no Python.h") as caught:
        trained(tiny.settings(world, compile=True), world, folder / "run")
    assert "--compile" in caught.value.mend


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the graphs that are handed to the compiler, which makes nothing of them: that would take long."""
    torch.compiler.reset()
    found: list[int] = []

    def compiler(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        found.append(len(module.graph.nodes))
        return module.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    yield found
    torch.compiler.reset()


@pytest.mark.world_sizes(2)  # each rank traces its own graphs
@pytest.mark.parametrize(
    ("changes", "networks"),
    [
        pytest.param({"warmup_epochs": 1 / 4, "momentum": "keep", "precision": "bf16"}, 2, id="warm-up-and-resist"),
        pytest.param({"method": "data-parallel"}, 1, id="data-parallel"),
    ],
)
def test_a_network_is_compiled_once_whatever_becomes_of_its_slots(
    changes: dict[str, Any], networks: int, graphs: list[int], world: World, folder: Path
) -> None:
    # Five rounds, two of them of warm-up and the last one shorter, all evaluated; stopped and resumed after the fourth.
    model = replace(tiny.MODEL, sections="1,1,3")
    settings = tiny.settings(world, iterations=9, evaluate_every=1, model=model, **changes)
    plain = trained(settings, world, folder / "plain")
    assert not graphs
    settings = replace(settings, compile=True, output=folder / "compiled")
    trained(replace(settings, max_rounds=4), world, folder / "compiled")
    assert len(graphs) == networks
    compiled = trained(replace(settings, resume=True), world, folder / "compiled")
    assert (compiled.progress.round, len(graphs)) == (5, networks)
    torch.testing.assert_close(
        compiled.method.subnet.parameters_flat, plain.method.subnet.parameters_flat, rtol=1e-5, atol=1e-5
    )
    assert compiled.progress.bytes_sent == plain.progress.bytes_sent
