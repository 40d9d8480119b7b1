"""Rounds in a user's own loop: counted step by step, saved, and gone on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resist_hvd import console
from resist_hvd.api.net import Net
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.methods.state import TorchState
from resist_hvd.records import RoundRecord
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.settings.run import Overlap
from resist_hvd.training.disk import append, disk_errors
from resist_hvd.training.journal import keep_lines_before
from resist_hvd.training.rounds import RoundCounter
from resist_hvd.training.run import Progress, Training
from resist_hvd.units import counted


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
        if overlap and (net.method.setup.outer_momentum or net.method.setup.outer_momentum_blocks):
            raise UserError(
                f"overlap is {overlap!r}, and outer momentum steps from numbers that all their holders have alike",
                mend="Leave out overlap; or, where the network is dealt, outer_momentum and outer_momentum_blocks.",
                everywhere=True,
            )
        self._net, self._optimizer = net, optimizer
        self._folder = Path(folder) if folder is not None else None
        self._length, self._overlap = local_iterations, overlap
        net.method.optimizer_state = TorchState(optimizer, net.subnet)
        self._training = Training(world=net.world, method=net.method)
        net.method.begin_here()  # what weights have been changed to since they were dealt
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
            "rates": list(self._rounds.rates),
            "overlap": self._overlap,
            "held": [list(own) for own in method.partition.held],
            "progress": asdict(self._training.progress),
            "parameters": self._net.subnet.parameters_flat.clone(),
            "exchange": asdict(method.setup.exchange),
            "outer_momentum": method.setup.outer_momentum,
            "outer_momentum_blocks": method.setup.outer_momentum_blocks,
            "own": _copied(method.state_in_mid_round()),
            "optimizer": _copied(self._optimizer.state_dict()),
            "random": [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])],
        }

    def _refuse_other(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that was saved with other settings, or of another network."""
        net, setup = self._net, self._net.method.setup
        for what, old, new in (
            ("workers", state["workers"], net.world.size),
            ("the seed", state["seed"], net.seed),
            ("parameters", state["parameters"].numel(), net.subnet.parameters_flat.numel()),
            ("local iterations", len(state["losses"]), self._length),
            ("overlap", state.get("overlap", 0), self._overlap),
            ("exchange", asdict(ExchangeSettings()) | state.get("exchange", {}), asdict(setup.exchange)),
            ("outer_momentum", state.get("outer_momentum", 0.0), setup.outer_momentum),
            ("outer_momentum_blocks", state.get("outer_momentum_blocks", 0.0), setup.outer_momentum_blocks),
        ):
            if old != new:
                raise UserError(
                    f"The state has {old} for {what}, where it is {new} now",
                    mend="Resume with what it was saved with.",
                )

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
            self._refuse_other(state)
            if not net.method.hold(state["held"]):
                raise UserError("The state's blocks were dealt by another min_blocks", mend="Give the one it had.")
        self._training.progress = Progress(**state["progress"])
        self._rounds.resume()
        net.subnet.parameters_flat.copy_(state["parameters"])
        for name, pieces in net.method.state_in_mid_round().items():
            for piece, saved in zip(pieces, state.get("own", {}).get(name, ()), strict=False):
                piece.copy_(saved)
        net.subnet.gradients_flat.zero_()
        self._optimizer.load_state_dict(state["optimizer"])
        self._rounds.begin()
        self._rounds.made, self.steps = state["made"], state["steps"]
        self._rounds.losses.copy_(state["losses"])
        self._rounds.rates[:] = state.get("rates", [])
        torch.set_rng_state(state["random"][0])
        if world.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"][1], world.device)
        with world.agree("opening the run's files"):
            if self._folder is not None and world.is_first:
                with disk_errors(self._folder):
                    done = self._training.progress.round
                    keep_lines_before(self._folder / "rounds.jsonl", round_number=done, inclusive=False)


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


def _copied(state: Any) -> Any:
    """Return a copy of an optimizer's state, tensors and all."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, Mapping):
        return {name: _copied(value) for name, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, (list, tuple)) else state
