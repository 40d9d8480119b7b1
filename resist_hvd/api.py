"""The toolkit in a user's own loop: workers joined, a network dealt out, rounds, evaluation; see docs/api.md."""

from __future__ import annotations

import atexit
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from resist_hvd import console
from resist_hvd.comm.devices import DeviceName
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.guard import failure
from resist_hvd.guard.judging import ENDING
from resist_hvd.methods.base import Setup
from resist_hvd.methods.registry import method_of
from resist_hvd.methods.state import FlatState, TorchState
from resist_hvd.nets.norms import norms_of
from resist_hvd.nets.parts import Network, Part, check_residual
from resist_hvd.records import RoundRecord
from resist_hvd.seeds import derive
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.settings.group import settings_of
from resist_hvd.settings.run import Momentum, Overlap
from resist_hvd.tasks.base import Metric
from resist_hvd.training.disk import append, disk_errors
from resist_hvd.training.evaluate import calibrate, inference, walk
from resist_hvd.training.export import write_model, write_plain_description
from resist_hvd.training.joining import joined
from resist_hvd.training.journal import keep_lines_before
from resist_hvd.training.rounds import RoundCounter
from resist_hvd.training.run import Progress, Training
from resist_hvd.units import counted

_joined = False
"""Whether `join` was called: its guards are of the whole process."""


def join(device: DeviceName = "auto", *, watchdog: float | None = None) -> World:
    """Join all processes that the launcher started into one world of workers; call it once, first of all.

    From then on signals, lost ranks and exceptions end all ranks together, as in `resist_hvd.train`: an exception that
    nothing catches is told with its rank and host, and no rank is left waiting.

    Args:
        device: auto is cuda where there is a GPU.
        watchdog: seconds in which nothing moves, after which a rank counts as lost; None for what the rounds' own
            lengths suggest, 0 for never.

    Returns:
        The world: its `rank`, `size` and `device`, and small words among all ranks.

    Raises:
        UserError: the ranks do not form one world, or there is no such device.
    """
    global _joined
    if _joined:
        raise UserError("This process has joined a world already", mend="Call resist_hvd.join once.", everywhere=True)
    _joined = True
    failure.begin()
    failure.advise("Go on from what the program itself has saved.")
    world, guard = joined(device, watchdog)
    guard.__enter__()
    failed: list[BaseException] = []

    def end_by(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        failed.append(error)
        guard.__exit__(kind, error, trace)
        failure.end_by(error)
        sys.__excepthook__(kind, error, trace)

    def end() -> None:
        if not failed:
            world.position = ENDING
            world.barrier()  # from here on, nobody is waited for but to end
            guard.__exit__(None, None, None)
            failure.end()

    sys.excepthook = end_by
    atexit.register(end)
    return world


class Net(nn.Module):
    """This worker's share of a network, as `deal` returns it: a module like any other.

    Its parameters stay the same tensors for good; at the end of each round other blocks lie in them.

    Attributes:
        world: all workers.
        seed: what its weights and partitions come from.
        method: what averages and exchanges; for those who want to look.
    """

    def __init__(self, setup: Setup, method: Literal["resist", "local-sgd"]) -> None:
        super().__init__()
        self.world, self.seed = setup.world, setup.seed
        seed = setup.world.broadcast_seed(derive(setup.seed, "round", 0))
        self.method = method_of(method).begin(setup, seed=seed)
        self.subnet = self.method.subnet

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs for a batch of inputs."""
        outputs: Tensor = self.subnet(x)
        return outputs

    @property
    def blocks(self) -> tuple[int, ...]:
        """The numbers of the blocks that this worker holds in the present round."""
        return self.method.blocks

    def save(self, path: str | Path, *, calibration: Iterable[Tensor] | None = None) -> None:
        """Write the global network as a safetensors file; all ranks must call it together, and none ever holds it.

        Names are those of the parts, `PART.TENSOR`. A network of torchvision's or timm's is read by their own
        `load_state_dict`; beside it goes a JSON file of the same name, by which `resist_hvd.nets.load` reads it.

        Args:
            path: the file, the same on all ranks.
            calibration: this worker's share of inputs that batch norms take their statistics from.

        Raises:
            UserError: the file cannot be written, or a network with batch norms has no inputs to calibrate on.
        """
        path = Path(path)
        with self.world.stopwatch.measure("checkpoint"):
            write_model(
                path,
                self.method,
                _calibration(self, calibration),
                self.world,
                beside=lambda: write_plain_description(path.with_suffix(".json"), self.method),
            )


def deal(
    parts: Network | Sequence[Part],
    world: World,
    *,
    min_blocks: int = 5,
    seed: int = 1,
    method: Literal["resist", "local-sgd"] = "resist",
    momentum: Momentum = "restart",
    exchange: Mapping[str, str | float] | None = None,
    inputs: Tensor | None = None,
) -> Net:
    """Deal a network out to all workers, and return this worker's share of it with its initial weights.

    All ranks must call it together, with the same parts.

    Args:
        parts: the network, part by part; or one of `resist_hvd.nets`, as `nets.timm("vit_small_patch16_224", ...)`.
        world: as `join` returned it.
        min_blocks: m, the fewest blocks of a deck that a worker holds; blocks are shared where that needs it.
        seed: of the initial weights and of each round's partition.
        method: local-sgd gives every worker the whole network, to compare with.
        momentum: what becomes of the optimizer's state when a round ends: it restarts, or is kept for the trunk and for
            blocks that stay with their worker.
        exchange: codecs of what workers send, and the share of the trunk that they do: `{"trunk": "int8", "keep": 0.25,
            "blocks": "int8"}`; fp32, and all, by default. The last round is encoded as others are, since nobody knows
            which it is.
        inputs: a batch of inputs, of which shape and type count; with it, parts that do not fit together are refused,
            and blocks that are not residual.

    Raises:
        UserError: on every rank, where the network cannot be dealt out, or ranks have different ones.
    """
    with world.agree("dealing out the network"):
        network = parts if isinstance(parts, Network) else Network(tuple(parts))
        if inputs is not None:
            two = inputs[:2]
            network = replace(network, example=torch.empty(two.shape, dtype=two.dtype, device="meta"))
        check_residual(network)
        setup = Setup(
            network=network,
            world=world,
            seed=seed,
            min_blocks=min_blocks,
            momentum=momentum,
            optimizer_state=lambda subnet: FlatState(subnet, ()),  # the caller's optimizer keeps its own
            exchange=_codecs(exchange or {}),
        )
        if method == "local-sgd" and setup.exchange.blocks != "fp32":
            raise UserError(
                f"exchange.blocks is {setup.exchange.blocks}, and blocks move with method='resist' only",
                mend="Leave it out.",
            )
    _refuse_others(setup, method)
    return Net(setup, method)


def _refuse_others(setup: Setup, method: str) -> None:
    """Refuse a network, or settings, that are other ones than rank 0's; all ranks call it together."""
    network = setup.network
    shape = [
        (part.name, part.deck, _shapes(module)) for part, module in zip(network.parts, network.modules, strict=True)
    ]
    everyone = setup.world.gather_objects(
        (shape, setup.seed, setup.min_blocks, method, setup.momentum, asdict(setup.exchange))
    )
    for rank, theirs in enumerate(everyone):
        if theirs != everyone[0]:
            raise UserError(
                f"Rank {rank} deals out another network than rank 0, or by other settings",
                mend="Have all ranks call deal with the same parts, seed, min_blocks, method, momentum and exchange.",
                everywhere=True,
            )


def _codecs(chosen: Mapping[str, str | float]) -> ExchangeSettings:
    settings = settings_of(ExchangeSettings)
    if not isinstance(chosen, Mapping) or not set(chosen) <= set(settings):
        raise UserError(f"exchange is {chosen!r}", mend=f"Give values by name for {', '.join(settings)}.")
    for name, value in chosen.items():
        if settings[name].kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"exchange.{name} is {value!r}", mend=f"Give {settings[name].wanted}.")
    try:
        return ExchangeSettings(**chosen)  # type: ignore[arg-type]  # it checks them
    except ValueError as error:
        seen, _, mend = str(error).partition("; ")
        raise UserError(seen.removeprefix("--"), mend=f"{mend.capitalize()}.") from None


def _shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]


def _check_lengths(world: World, local_iterations: int, overlap: Overlap) -> None:
    """Refuse rounds that cannot be, and other ones than rank 0's."""
    with world.agree("beginning rounds"):
        if not isinstance(local_iterations, int) or local_iterations < 1:
            raise UserError(f"local_iterations is {local_iterations!r}", mend="Give a whole number of 1 or more.")
        if overlap != "auto" and not (isinstance(overlap, int) and 0 <= overlap < local_iterations):
            raise UserError(
                f"overlap is {overlap!r}, and a round has {local_iterations} local iterations",
                mend="Give a whole number of 0 or more, and fewer than local_iterations, or 'auto'.",
            )
    everyone = world.gather_objects((local_iterations, overlap))
    for rank, theirs in enumerate(everyone):
        if theirs != everyone[0]:
            names = ("local_iterations", "overlap")
            first, other = (" and ".join(map("{} {!r}".format, names, each)) for each in (everyone[0], theirs))
            raise UserError(
                f"Rank {rank} has {other}, and rank 0 {first}",
                mend="Have all ranks make Rounds with the same numbers.",
                everywhere=True,
            )


class Rounds:
    """Rounds of local training: each `local_iterations`-th `step` averages, exchanges blocks and deals anew.

    Args:
        net: as `deal` returned it.
        optimizer: any of PyTorch's, of the net's parameters.
        local_iterations: l, local iterations of a round.
        overlap: T, how many of them are made while a synchronisation is under way: see docs/runs.md. Blocks that move
            stand still meanwhile: their parameters have no gradients. auto measures the first rounds, chooses T, and
            has rank 0 print why.
        folder: where `rounds.jsonl` is written, a line a round, for `resist_hvd.report`; None for nowhere.

    Attributes:
        steps: local iterations that this worker has made, over all rounds.
        stopping: whether a rank was told to stop (USR2, INT): save `state()` and raise `resist_hvd.Stopped`.
    """

    def __init__(
        self,
        net: Net,
        optimizer: torch.optim.Optimizer,
        *,
        local_iterations: int = 50,
        overlap: Overlap = 0,
        folder: str | Path | None = None,
    ) -> None:
        _check_lengths(net.world, local_iterations, overlap)
        ours = set(map(id, net.parameters()))
        others = sum(id(parameter) not in ours for group in optimizer.param_groups for parameter in group["params"])
        if others:
            raise UserError(
                f"The optimizer has {counted(others, 'parameter')} that the network does not have",
                mend="Make it of net.parameters(), where net is what resist_hvd.deal returned: no others are averaged.",
                everywhere=True,
            )
        self._net, self._optimizer = net, optimizer
        self._folder = Path(folder) if folder is not None else None
        self._length, self._overlap = local_iterations, overlap
        net.method.optimizer_state = TorchState(optimizer, net.subnet)
        self._training = Training(world=net.world, method=net.method)
        if overlap not in (0, "auto"):
            net.method.make_room()
        self._rounds = RoundCounter(
            self._training, seed=net.seed, length=lambda: local_iterations, longest=local_iterations, overlap=overlap
        )
        self.steps = 0
        net.world.stop.heeded = True
        with net.world.agree("opening the run's folder"):
            if self._folder is not None and net.world.is_first:
                with disk_errors(self._folder):
                    self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def stopping(self) -> bool:
        """True once a rank was told to stop, as all ranks agreed on when the last round ended."""
        return self._training.stop_signal != 0

    def step(self, loss: Tensor) -> RoundRecord | None:
        """Take note of a local iteration, after the optimizer's step; the last of a round ends it, on all ranks.

        Gradients are zero, or None, after a round: it needs their memory.

        Args:
            loss: of the iteration, a scalar; one that is not finite ends all ranks.

        Returns:
            The record of the round that this ended, the same on all ranks; else None.

        Raises:
            UserError: on every rank, where the loss of one was not finite; on rank 0, where a file cannot be written;
                where the loss is no scalar tensor.
        """
        self._net.world.activity.progress()
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"a tensor {[*loss.shape]}" if isinstance(loss, Tensor) else f"of type {type(loss).__name__}"
            raise UserError(f"The loss is {found}", mend="Give Rounds.step the scalar tensor that went backward.")
        if self.steps == 0:
            self._refuse_used_folder()
        self.steps += 1
        record = self._rounds.step(loss, float(self._optimizer.param_groups[0]["lr"]))
        if record is not None:
            self._net.subnet.gradients_flat.zero_()
            self._write(record)
            if self._rounds.choice is not None and self._net.world.is_first:
                console.out(self._rounds.choice.sentence)
            self._rounds.begin()
        return record

    def _refuse_used_folder(self) -> None:
        path = (self._folder or Path()) / "rounds.jsonl"
        if self._folder is not None and self._net.world.is_first and path.exists() and path.stat().st_size:
            raise UserError(
                "The folder already holds rounds, and these would begin anew",
                where=str(path),
                mend="Load the state that was saved with them, or give another folder.",
            )

    def _write(self, record: RoundRecord) -> None:
        if self._folder is not None and self._net.world.is_first:
            path = self._folder / "rounds.jsonl"
            with disk_errors(path):
                append(path, record.as_line())

    def state(self) -> dict[str, Any]:
        """Return all that this worker goes on from, between two steps; for `torch.save`, a file for each rank.

        Its tensors are copies. The position in the data is the caller's: `steps` says how many were made.

        Raises:
            UserError: on every rank, where a synchronisation is under way.
        """
        self._refuse_under_way()
        device, method = self._net.world.device, self._net.method
        return {
            "rank": self._net.world.rank,
            "workers": self._net.world.size,
            "seed": self._net.seed,
            "steps": self.steps,
            "made": self._rounds.made,
            "losses": self._rounds.losses.clone(),
            "overlap": self._overlap,
            "held": [list(own) for own in method.partition.held],
            "progress": asdict(self._training.progress),
            "parameters": self._net.subnet.parameters_flat.clone(),
            "exchange": asdict(method.setup.exchange),
            "own": _copied(method.own_by_this_worker()),
            "optimizer": _copied(self._optimizer.state_dict()),
            "random": [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])],
        }

    def _refuse_under_way(self) -> None:
        if self._rounds.under_way:
            raise UserError(
                f"A synchronisation is under way beside these steps, after {self._rounds.made} of {self._length}",
                mend="Save and load states where Rounds.step returns a record, or before the first step.",
                everywhere=True,
            )

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that this rank has saved, exactly; all ranks must call it together.

        Read it with `torch.load(path, weights_only=True)`.

        Raises:
            UserError: on every rank, where it is of another network, seed or number of workers, or a synchronisation is
                under way.
        """
        self._refuse_under_way()
        net, world = self._net, self._net.world
        everyone = world.gather_objects([state[name] for name in ("rank", "steps", "held")])
        with world.agree("loading the state"):
            for rank, (whose, steps, held) in enumerate(everyone):
                if (whose, steps, held) != (rank, *everyone[0][1:]):
                    raise UserError(
                        f"Rank {rank} loads what rank {whose} saved after {steps} steps, and rank 0 what was saved "
                        f"after {everyone[0][1]}",
                        mend="Have each rank load its own file, all of one time.",
                    )
            flat = net.subnet.parameters_flat
            codecs = asdict(net.method.setup.exchange)
            encoded = asdict(ExchangeSettings()) | state.get("exchange", {})
            for what, old, new in (
                ("workers", state["workers"], world.size),
                ("the seed", state["seed"], net.seed),
                ("parameters", state["parameters"].numel(), flat.numel()),
                ("local iterations", len(state["losses"]), self._length),
                ("overlap", state.get("overlap", 0), self._overlap),
                ("exchange", encoded, codecs),
            ):
                if old != new:
                    raise UserError(
                        f"The state has {old} for {what}, where it is {new} now",
                        mend="Resume with what it was saved with.",
                    )
            if not net.method.hold(state["held"]):
                raise UserError("The state's blocks were dealt by another min_blocks", mend="Give the one it had.")
        self._training.progress = Progress(**state["progress"])
        self._rounds.resume()
        flat.copy_(state["parameters"])
        for name, pieces in net.method.own_by_this_worker().items():
            for piece, saved in zip(pieces, state.get("own", {}).get(name, ()), strict=False):
                piece.copy_(saved)
        net.subnet.gradients_flat.zero_()
        self._optimizer.load_state_dict(state["optimizer"])
        self._rounds.begin()
        self._rounds.made, self.steps = state["made"], state["steps"]
        self._rounds.losses.copy_(state["losses"])
        torch.set_rng_state(state["random"][0])
        if world.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"][1], world.device)
        with world.agree("opening the run's files"):
            if self._folder is not None and world.is_first:
                with disk_errors(self._folder):
                    done = self._training.progress.round
                    keep_lines_before(self._folder / "rounds.jsonl", round_number=done, inclusive=False)


def _copied(state: Any) -> Any:
    """Return a copy of an optimizer's state, tensors and all."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, Mapping):
        return {name: _copied(value) for name, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, (list, tuple)) else state


def evaluate(
    net: Net,
    batches: Iterable[tuple[Tensor, Any]],
    metric: Metric,
    *,
    calibration: Iterable[Tensor] | None = None,
) -> Any:
    """Evaluate the global network, although no worker has all of it; all ranks must call it together.

    Each rank carries its batches through the network part by part; blocks that it does not hold are lent to it.

    Args:
        net: as `deal` returned it.
        batches: this worker's share of the test set, on its device: inputs and targets. Shares may differ in length.
        metric: any of torchmetrics, or what has its `update`, `compute`, `reset`, `metric_state` and `merge_state`.
        calibration: this worker's share of inputs that batch norms take their statistics from.

    Returns:
        What the metric computes over all workers' batches, the same on all ranks.

    Raises:
        UserError: on every rank, where a network with batch norms has no inputs to calibrate on, or no rank has any to
            evaluate on.
    """
    method, world = net.method, net.world
    images = _calibration(net, calibration)
    with world.stopwatch.measure("evaluate"), inference(method), torch.no_grad():
        statistics = [found for _, found in calibrate(method, images, world)]
        inputs = walk(iter(batches), method, statistics, None, metric, world)
    if not inputs:
        raise UserError(
            "There are no inputs to evaluate on, on any rank",
            mend="Give batches: an iterator that was used up before has none.",
            everywhere=True,
        )
    with warnings.catch_warnings():
        # torchmetrics takes no notice of states that were merged, and warns that there was no update.
        warnings.filterwarnings("ignore", message=".*``compute`` method .* was called before the ``update`` method")
        return metric.compute()


def _calibration(net: Net, images: Iterable[Tensor] | None) -> Iterable[Tensor]:
    if images is None and any(norms_of(module) for module in net.method.network.modules):
        raise UserError(
            "The network has batch norms, and no inputs to take their statistics from",
            mend="Give calibration, batches of this worker's training inputs.",
            everywhere=True,
        )
    return images or ()
