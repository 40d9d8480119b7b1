"""Local SGD, the paper's baseline (section 2.4): every worker trains the whole network, averaged after each round."""

from __future__ import annotations

from resist_hvd.methods.replicated import Replicated


class LocalSGD(Replicated):
    """Train the whole network for l local iterations, then average all of it in one collective."""

    def synchronise(self, seed: int) -> None:
        """Average all parameters among all workers; the partition is ever the same, so `seed` does not matter."""
        self.transport.finish(self.transport.start_average(self.subnet.parameters_flat, "parameters"))
        if self.setup.momentum == "restart":
            self.velocity.fresh = True
