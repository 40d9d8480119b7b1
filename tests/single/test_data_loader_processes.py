"""The processes of the torchvision loader: deaf to signals that are meant for ranks, and gone when their rank is."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from .. import photographs

PROGRAM = """
import signal, sys, torch
import psutil
from pathlib import Path
from resist_hvd.data import Shard, load
from resist_hvd.settings.data import DataSettings

settings = DataSettings(
    name="imagenet", root=Path(sys.argv[1]), loader="torchvision", batch_size=4, image_size=32, decode_threads=2
)
source = load(settings, shard=Shard(rank=0, size=1), seed=1, device=torch.device("cpu"))
stream = source.train()
next(stream)
"""

SIGNALLED = """
children = psutil.Process().children(recursive=True)
for name in ("TERM", "INT", "HUP", "USR1", "USR2"):
    for child in children:
        child.send_signal(getattr(signal, f"SIG{name}"))
for _ in range(12):
    next(stream)
next(source.test())
print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
"""


def start(root: Path, then: str) -> subprocess.Popen[str]:
    """Start the program from standard input: its main module cannot be imported, as by processes it need not."""
    text = root.with_suffix(".txt")
    text.write_text(PROGRAM + then)
    with text.open() as program:
        return subprocess.Popen(
            [sys.executable, "-", str(root)], stdin=program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


def wait_until_gone(pids: list[int]) -> None:
    end = time.monotonic() + 60
    while left := [pid for pid in pids if psutil.pid_exists(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def test_signals_to_all_processes_end_none_and_a_killed_rank_leaves_none(tmp_path: Path) -> None:
    program = start(photographs.make_root(tmp_path / "data"), SIGNALLED + "import time; time.sleep(600)")
    with program:
        assert program.stdout is not None
        assert program.stderr is not None
        pids = [int(word) for word in program.stdout.readline().split()]
        assert len(pids) >= 4, program.stderr.read()  # two that decode, their server, and multiprocessing's tracker
        program.kill()
    wait_until_gone(pids)


def test_a_program_that_ends_with_a_loader_open_ends(tmp_path: Path) -> None:
    program = start(photographs.make_root(tmp_path / "data"), "batches = source.test(); next(batches)")
    _, said = program.communicate(timeout=300)
    assert program.returncode == 0, said
