"""A decoder-only transformer of 12 blocks on the bytes of a text, by ResIST in a loop of one's own.

launch/run -np 4 examples/own_loop.py [--text FILE...] [--method local-sgd]; by default on Python's standard library.
"""

import argparse
import math
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import resist_hvd as resist

CONTEXT, WIDTH, HEADS, BLOCKS, BATCH = 64, 64, 4, 12, 16


class Embedding(nn.Embedding):
    def forward(self, text: Tensor) -> Tensor:
        """Return the sum of what the bytes stand for, and of what their places do."""
        return super().forward(text) + self.weight[256:]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.attended = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.mix(self.first(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.attended(seen.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.second(x))))


def draw(text: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return windows of a text [BATCH, CONTEXT], and the byte that follows each of theirs."""
    starts = torch.randint(len(text) - CONTEXT, (BATCH,), generator=torch.Generator().manual_seed(seed))
    windows = torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()]).long()
    return windows[:, :-1], windows[:, 1:]


def surprise(scores: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
    return functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction=reduction)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--text", type=Path, nargs="+", default=sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
parser.add_argument("--method", choices=["resist", "local-sgd"], default="resist")
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--folder", type=Path, default=Path("runs/own_loop"))
given = parser.parse_args()
world = resist.join()
text = torch.tensor(list(b"".join(path.read_bytes() for path in given.text)), dtype=torch.uint8)
train, test = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
blocks = [resist.Part(f"blocks.{b}", Block, deck="blocks", branches=("attended", "down")) for b in range(BLOCKS)]
head = resist.Part("head", lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)))
net = resist.deal(
    [resist.Part("embedding", lambda: Embedding(256 + CONTEXT, WIDTH)), *blocks, head],
    world,
    min_blocks=6,
    method=given.method,
)
optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
rounds = resist.Rounds(net, optimizer, local_iterations=20, folder=given.folder)
saved = given.folder / f"state-{world.rank}.pt"
if saved.exists():  # it was told to stop, and goes on exactly where it was
    rounds.load(torch.load(saved, weights_only=True))
while rounds.steps < given.steps:
    windows, targets = (x.to(world.device) for x in draw(train, rounds.steps * world.size + world.rank))
    loss = surprise(net(windows), targets, "mean")
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if (record := rounds.step(loss)) and world.is_first:
        print(f"round {record.round + 1}  loss {record.loss:.4f}  sent {record.bytes_sent / 1e6:.2f} MB", flush=True)
    if rounds.stopping:
        torch.save(rounds.state(), saved)
        raise resist.Stopped("Stopped; the same command goes on")
share = (tuple(x.to(world.device) for x in draw(test, -1 - n)) for n in range(world.rank, 64, world.size))
bits = resist.evaluate(net, share, resist.Mean(surprise)) / math.log(2)
net.save(given.folder / "model.safetensors")
if world.is_first:
    print(f"{given.method}: {bits:.4f} bits per byte", flush=True)
