"""`bench compare` on hosts whose own names are loopbacks to them, as Debian has it."""

import re

from . import labs

OWN_NAME_IS_A_LOOPBACK = 'printf "127.0.1.1 %s\\n%s\\n" "$(hostname)" "$(cat /etc/hosts)" >/etc/hosts'
FLAGS = (
    *("--rows=local-sgd,pytorch-ddp", "--rounds=1", "--repeats=1", "--local_iterations=1", "--evaluate=false"),
    *("--model.sections=1,1,2,1", "--model.width_factor=0.125", "--data.batch_size=8"),
)


def test_ranks_find_the_network_that_joins_their_hosts(lab_of_two: labs.Lab) -> None:
    lab = lab_of_two
    for host in ("n1", "n2"):
        assert lab.do("run", "--on", host, "sh", "-c", OWN_NAME_IS_A_LOOPBACK).status == 0
        assert lab.do("run", "--on", host, "getent", "hosts", host).stdout.startswith("127.0.1.1")
    ended = lab.do("run", "-np", "2", "python", "-m", "resist_hvd.bench", "compare", *FLAGS)
    assert ended.status == 0, ended
    assert re.search(r"^ratio \d", ended.stdout, re.MULTILINE), ended
