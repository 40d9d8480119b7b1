"""`bench compare` on hosts whose own names are loopbacks to them, as Debian has it."""

import json
import re

from . import labs

OWN_NAME_IS_A_LOOPBACK = 'printf "127.0.1.1 %s\\n%s\\n" "$(hostname)" "$(cat /etc/hosts)" >/etc/hosts'
FLAGS = (
    *("--rows=local-sgd,pytorch-ddp,gpipe", "--rounds=4", "--repeats=1", "--local_iterations=1", "--evaluate=false"),
    *("--model.sections=1,1,2,1", "--model.width_factor=0.125", "--data.batch_size=8"),
)


def test_ranks_find_the_network_that_joins_their_hosts(lab_of_two: labs.Lab) -> None:
    lab, file = lab_of_two, lab_of_two.folder / "compared.json"
    for host in ("n1", "n2"):
        assert lab.do("run", "--on", host, "sh", "-c", OWN_NAME_IS_A_LOOPBACK).status == 0
        assert lab.do("run", "--on", host, "getent", "hosts", host).stdout.startswith("127.0.1.1")
    ended = lab.do("run", "-np", "2", "python", "-m", "resist_hvd.bench", "compare", *FLAGS, f"--json={file}")
    assert ended.status == 0, ended
    assert re.search(r"^ratio \d", ended.stdout, re.MULTILINE), ended
    # The kernel counts what a pipeline's ranks say that they have sent, and headers and acknowledgements.
    (pipe,) = json.loads(file.read_text())["measured"]["gpipe"]
    assert pipe["bytes_counted"] > 2**18
    assert 1 < pipe["bytes_network"] / pipe["bytes_counted"] < 1.2
