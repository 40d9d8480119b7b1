"""The training program, one rank of which sends itself a signal at a moment that cannot be hit from outside.

RESIST_HVD_AIM says in JSON what is aimed at: rank, begins, time, delay, signal, told. When the signal is sent, its time
is left in the file `told`, on the monotonic clock, which all processes share; where the signal is 0, the moment's is,
and who reads the file sends a signal. USR1 has a rank write its threads' stacks, so that a hang can be told.
"""

import faulthandler
import json
import os
import re
import runpy
import signal
import sys
import threading
import time


class Aim:
    """What is aimed at, and how often it has come."""

    def __init__(self) -> None:
        aim = json.loads(os.environ.get("RESIST_HVD_AIM", "{}"))
        self.here = aim.get("rank") == int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
        self.begins = re.compile(aim.get("begins") or "(?!)")
        self.left = aim.get("time", 0)
        self.aim = aim

    def came(self, moment: str) -> None:
        """Note that a moment has come."""
        if not self.here or not self.begins.search(moment):
            return
        self.left -= 1
        if self.left == 0:
            sender = threading.Timer(self.aim["delay"], self._send) if self.aim["signal"] else None
            if sender is None:
                self._tell()
            else:
                sender.daemon = True
                sender.start()

    def _tell(self) -> None:
        partial = f"{self.aim['told']}.partial"
        with open(partial, "w") as file:
            file.write(str(time.monotonic()))
        os.replace(partial, self.aim["told"])

    def _send(self) -> None:
        self._tell()
        os.kill(os.getpid(), self.aim["signal"])


def before(owner, name, aim, moment):
    """Have a moment come whenever a function is called; `moment` names it by the function's arguments."""
    sound = getattr(owner, name)

    def called(*arguments, **named):
        aim.came(moment(arguments))
        return sound(*arguments, **named)

    setattr(owner, name, called)


def main():
    """Train as `python -m resist_hvd.train` does, and take aim."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if "RESIST_HVD_TEST_BOARD" not in os.environ:
        sys.modules["tensorboard"] = None
    aim = Aim()
    from resist_hvd.guard import starting

    if aim.begins.search("importing"):
        sound = starting.begin
        starting.begin = lambda: (sound(), aim.came("importing"))
    else:
        starting.begin()  # as the program itself does before it imports what takes its time, which is done here already
        from resist_hvd.comm.activity import Activity
        from resist_hvd.comm.world import World
        from resist_hvd.training import checkpoint
        from resist_hvd.training.journal import Journal

        before(World, "join", aim, lambda _: "starting MPI")
        before(Activity, "begin", aim, lambda arguments: arguments[1])
        before(checkpoint, "describe", aim, lambda _: "manifest")
        before(Journal, "summary", aim, lambda _: "finishing")
    runpy.run_module("resist_hvd.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
