"""Hosts of a lab let its owner in from one another, by ssh, and nobody else; mpirun starts ranks that way."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from laboratory import state

from . import labs

NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
SEND_GARBAGE = """
import socket
for message in (b"x\\n", b"\\xff" * 100_000, b"SSH-2.0-x\\r\\n" + b"9" * 100_000, b""):
    with socket.create_connection(("n2", 22)) as line:
        try:
            line.sendall(message)
        except OSError:
            pass
"""


def test_ranks_on_all_hosts_have_the_caller_s_environment_and_folder(
    lab_of_two: labs.Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_CALLER", "two\nlines; $HOME")
    # One write for each line, also where the caller's Python does not buffer: lines of different ranks must not mix.
    tell = (
        "import os, socket; here = socket.gethostname(), os.getcwd(); "
        "os.write(1, f'{here[0]} {here[1]} {os.environ[\"OF_THE_CALLER\"]!r}\\n'.encode())"
    )
    ended = lab_of_two.do("run", "-np", "2", "python", "-c", tell)
    expected = [f"{host} {lab_of_two.folder} 'two\\nlines; $HOME'" for host in ("n1", "n2")]
    assert sorted(ended.stdout.splitlines()) == expected, ended


def test_ssh_and_mpirun_work_by_hand_as_on_any_cluster(lab_of_two: labs.Lab) -> None:
    # Called by its whole path, mpirun has its daemon's path set on the other hosts.
    said = lab_of_two.ask("sh", "-c", "$(command -v mpirun) --host n1:1,n2:1 sh -c 'hostname; command -v python'")
    assert sorted(said.split()) == [*[str(labs.ROOT / ".venv/bin/python")] * 2, "n1", "n2"]
    ended = lab_of_two.do("run", "ssh", "n2", "hostname; exit 7")
    assert (ended.status, ended.stdout, ended.stderr) == (7, "n2\n", "")


def test_others_than_the_owner_are_not_let_in(lab_of_two: labs.Lab) -> None:
    lab = lab_of_two
    # Another user of this machine does not come near the keys, and on a host he has none.
    outside = subprocess.run(
        [*NOBODY, "ls", state.folder_of(lab.name)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert "Permission denied" in outside.stderr
    within = lab.do("run", "--on", "n1", *NOBODY, "ssh", "root@n2", "true")
    assert within.status == 255
    assert 'Load key "/etc/ssh/key": Permission denied' in within.stderr
    # The key alone is asked for, and it opens no other account.
    other = lab.do("run", "--on", "n1", "ssh", "nobody@n2", "true")
    assert (other.status, other.stderr.splitlines()[-1]) == (255, "nobody@n2: Permission denied (publickey).")


def test_host_outlives_whatever_comes_by_its_port(lab_of_two: labs.Lab) -> None:
    lab = lab_of_two
    with subprocess.Popen(lab.command("run", "--on", "n2", "sleep", "600")) as bystander:
        labs.wait_until(lambda: bool(lab.processes()["n2"]), lambda: "it never ran")
        assert lab.do("run", "--on", "n1", *NOBODY, "python", "-c", SEND_GARBAGE).status == 0
        assert lab.ask("ssh", "n2", "hostname") == "n2\n"
        assert bystander.poll() is None
        bystander.terminate()
    lab.assert_empty()


def test_who_called_sudo_is_himself(needs_lab: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setenv("SUDO_USER", "nobody")
    with labs.made(tmp_path, hosts=1) as lab:
        tell = "id -un; id -G; echo $HOME; cat /etc/ssh/key"
        said = lab.do("run", "--on", "n1", "sh", "-c", tell)
        assert said.stdout.startswith(f"nobody\n{os.getgrouplist('nobody', 65534)[0]}\n/nonexistent\n-----BEGIN"), said
        assert lab.do("run", "--on", "n1", "kill", "1").status != 0
