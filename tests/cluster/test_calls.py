"""A host of a lab outlives whatever comes by its socket, and hears only root and the lab's owner."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from laboratory import calls, state

from . import labs

NOBODY = 65534
SOUND = {"command": ["sleep", "600"], "environment": {"PATH": "/usr/bin:/bin"}, "folder": "/"}


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Be another user to the kernel."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def socket_of(lab: labs.Lab, host: str = "n1") -> Path:
    return state.folder_of(lab.name) / f"{host}.socket"


@contextmanager
def called(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(60)
        line.connect(str(path))
        yield line


def send(line: socket.socket, message: bytes, streams: int = 3) -> None:
    with open(os.devnull, "r+b") as nothing:
        socket.send_fds(line, [message[:1]], [nothing.fileno()] * streams)
    line.sendall(message[1:])


def encoded(**changes: object) -> bytes:
    return json.dumps({**SOUND, **changes}).encode() + b"\n"


def answer_to(path: Path, message: bytes, streams: int = 3) -> str:
    """Return the error that a message is answered with; empty where the host hangs up without a word."""
    with called(path) as line:
        with contextlib.suppress(OSError):  # it may hang up before all is sent
            send(line, message, streams)
        try:
            received = b"".join(iter(lambda: line.recv(65536), b""))
        except ConnectionResetError:
            return ""
        return str(json.loads(received)["error"]) if received else ""


MESSAGES: dict[str, tuple[bytes, int]] = {
    "garbage": (b"x\n", 3),
    "no text": (b"\xff\xfe\n", 3),
    "no object": (b"[1, 2]\n", 3),
    "nothing in it": (b"{}\n", 3),
    "no streams": (encoded(), 0),
    "two streams": (encoded(), 2),
    "no command": (encoded(command=[]), 3),
    "command of numbers": (encoded(command=[1]), 3),
    "command with a zero byte": (encoded(command=["a\0b"]), 3),
    "unknown command": (encoded(command=["/no/such"]), 3),
    "environment of numbers": (encoded(environment={"A": 1}), 3),
    "environment with an equals sign": (encoded(environment={"A=B": "1", "C\0": ""}), 3),
    "no folder": (encoded(folder=None), 3),
    "folder that is not there": (encoded(folder="/no/such"), 3),
    "user of text": (encoded(user="root"), 3),
    "user below zero": (encoded(user={"uid": -7, "gid": 0, "groups": []}), 3),
    "user above all": (encoded(user={"uid": 1 << 70, "gid": 0, "groups": []}), 3),
    "signal before all": (b'{"signal": 9}\n', 3),
    "deep": (b"[" * 500_000 + b"\n", 3),
    "huge": (b" " * (calls.LONGEST_REQUEST + 70_000), 3),
    "number without end": (b"9" * 100_000 + b"\n", 3),
    "two lines at once": (b"x\n" * 50, 3),
}


def test_whatever_a_caller_sends_is_his_alone(lab_of_two: labs.Lab) -> None:
    lab, path = lab_of_two, socket_of(lab_of_two)
    with subprocess.Popen(lab.command("run", "--on", "n1", "sleep", "600")) as bystander:
        labs.wait_until(lambda: bool(lab.processes()["n1"]), lambda: "it never ran")
        for name, (message, streams) in MESSAGES.items():
            said = answer_to(path, message, streams)
            assert said or name == "huge", name
        with called(path) as slow, called(path) as silent, called(path) as greedy:
            slow.sendall(b'{"comm')
            for _ in range(400):  # descriptors that nobody asked for
                send(greedy, b"  ")
            many = [socket.socket(socket.AF_UNIX) for _ in range(500)]
            for line in many:
                line.connect(str(path))
            assert lab.do("run", "--on", "n1", "true").status == 0
            for line in many:
                line.close()
            assert silent.fileno() > 0
        assert lab.do("run", "--on", "n1", "true").status == 0
        assert bystander.poll() is None
        bystander.terminate()
    lab.assert_empty()


def test_caller_whose_program_runs_can_only_signal_it(lab_of_two: labs.Lab) -> None:
    lab, path = lab_of_two, socket_of(lab_of_two)

    def running() -> list[list[str]]:
        return [one["command"] for one in lab.processes()["n1"]]

    with called(path) as line:
        send(line, encoded())
        labs.wait_until(lambda: running() == [["sleep", "600"]], lambda: str(running()))
        for number in (0, -1, 10_000, signal.SIGKILL.value, signal.SIGSTOP.value):
            send(line, json.dumps({"signal": number}).encode() + b"\n")
        time.sleep(0.5)
        assert [one["state"] for one in lab.processes()["n1"]] == ["S"]
        send(line, encoded(command=["sleep", "601"]))  # a second program is none of its business
        assert json.loads(line.recv(65536))["error"]
    lab.assert_empty()


@pytest.mark.parametrize("message", [b"x\n", encoded()])
def test_others_than_the_owner_are_not_heard(lab_of_two: labs.Lab, message: bytes) -> None:
    """By the socket's mode, and should that be loosened, by what the kernel says of who calls."""
    path = socket_of(lab_of_two)
    assert path.stat().st_mode & 0o777 == 0o600
    with as_user(NOBODY), pytest.raises(PermissionError), called(path):
        pass
    path.chmod(0o666)
    with as_user(NOBODY), called(path) as line:
        with contextlib.suppress(ConnectionError):
            send(line, message)
        with contextlib.suppress(ConnectionError):
            assert line.recv(1) == b""
    assert not any(lab_of_two.processes().values())
    assert lab_of_two.do("run", "--on", "n1", "true").status == 0


def test_who_called_sudo_may_run_programs_and_be_himself(needs_lab: None, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    variables = {"SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with labs.made(tmp_path, hosts=1) as lab:
            assert socket_of(lab).stat().st_uid == NOBODY
            assert lab.do("run", "--on", "n1", "id", "-u").stdout == f"{NOBODY}\n"
            with as_user(NOBODY), called(socket_of(lab)) as line:
                read, write = os.pipe()
                socket.send_fds(line, [b" "], [write] * 3)
                line.sendall(json.dumps({**SOUND, "command": ["id", "-u"], "user": None}).encode() + b"\n")
                assert json.loads(line.recv(100)) == {"status": 0}
                os.close(write)
                with open(read) as output:
                    assert output.read() == f"{NOBODY}\n"


def test_hints_name_the_lab(lab_of_two: labs.Lab) -> None:
    name = lab_of_two.name
    for verb, *words in (("up",), ("run",), ("pause", "rank9"), ("run", "--on", "n1", "/no/such")):
        said = lab_of_two.do(verb, *words).stderr
        assert f"--name {name}" in said, said
