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
        """Return the sum of each byte's vector and of its place's."""
        return super().forward(text) + self.weight[256:]


class Block(nn.TransformerEncoderLayer):
    def __init__(self) -> None:
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        super().__init__(WIDTH, HEADS, 4 * WIDTH, **options)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT, device=x.device)
        return super().forward(x, mask, is_causal=True)


def draw(text: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return windows of a text [BATCH, CONTEXT], and the byte that follows each of theirs."""
    starts = torch.randint(len(text) - CONTEXT, (BATCH,), generator=torch.Generator().manual_seed(seed))
    windows = text.unfold(0, CONTEXT + 1, 1)[starts.to(text.device)].long()
    return windows[:, :-1], windows[:, 1:]


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--text", type=Path, nargs="+", default=sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
parser.add_argument("--method", choices=["resist", "local-sgd"], default="resist")
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--folder", type=Path, default=Path("runs/own_loop"))
given = parser.parse_args()
world = resist.join()
text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in given.text)), dtype=torch.uint8)
train, test = text.to(world.device).tensor_split([len(text) * 9 // 10])
branches = ("self_attn.out_proj", "linear2")  # the layers that end a block's residual branches
blocks = [resist.Part(f"blocks.{b}", Block, deck="blocks", branches=branches) for b in range(BLOCKS)]
head = resist.Part("head", lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)))
parts = [resist.Part("embedding", lambda: Embedding(256 + CONTEXT, WIDTH)), *blocks, head]
net = resist.deal(parts, world, min_blocks=6, method=given.method)
optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
rounds = resist.Rounds(net, optimizer, local_iterations=20, folder=given.folder)
saved = given.folder / f"state-{world.rank}.pt"
if saved.exists():  # it was told to stop, and goes on exactly where it was
    rounds.load(torch.load(saved, weights_only=True))
while rounds.steps < given.steps:
    windows, targets = draw(train, rounds.steps * world.size + world.rank)
    loss = functional.cross_entropy(net(windows).mT, targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if (record := rounds.step(loss)) and world.is_first:
        print(f"round {record.round + 1}  loss {record.loss:.4f}  sent {record.bytes_sent / 1e6:.2f} MB", flush=True)
    if rounds.stopping:
        torch.save(rounds.state(), saved)
        raise resist.Stopped("Stopped; the same command goes on")
share = (draw(test, -1 - n) for n in range(world.rank, 64, world.size))
surprise = resist.Mean(lambda scores, targets: functional.cross_entropy(scores.mT, targets, reduction="none"))
bits = resist.evaluate(net, share, surprise) / math.log(2)
net.save(given.folder / "model.safetensors")
if world.is_first:
    print(f"{given.method}: {bits:.4f} bits per byte", flush=True)
