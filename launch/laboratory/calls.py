"""Running a program on a host, from this machine or from another host: as ssh does, without keys and without a network.

A caller connects to the host's socket, which lies in the lab's folder, hands over its standard streams and says what
to run. The host's first process runs it, passes signals on, and answers with its status. If the caller dies, the
program is told to end by TERM. Messages are lines of JSON; the first carries the three streams.
"""

import json
import os
import pwd
import selectors
import signal
import socket
import struct
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laboratory.errors import LabError

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
NOT_FOUND = 127


@dataclass(frozen=True)
class User:
    """Whom a program runs as."""

    uid: int
    gid: int
    groups: list[int]

    @classmethod
    def of(cls, uid: int, gid: int) -> "User":
        """Return a user with the groups that this machine knows him in."""
        try:
            groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
        except KeyError:
            groups = [gid]
        return cls(uid, gid, groups)


def call(path: Path, command: list[str], environment: dict[str, str], folder: str, user: User | None = None) -> int:
    """Run a program on a host with this process's standard streams, and return its exit status as a shell would.

    Args:
        path: the host's socket.
        command: the program and its arguments.
        environment: all of its environment.
        folder: where it starts.
        user: whom it runs as; only root may say.

    Raises:
        LabError: the host does not answer, or cannot run that.
    """
    request = {"command": command, "environment": environment, "folder": folder}
    if user is not None:
        request["user"] = vars(user)
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(str(path))
            _send_request(line, json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise LabError(
                f"the host {path.stem} does not answer: {error.strerror}",
                mend="It was killed, or its lab is down; `launch/lab ps` shows what is left.",
            ) from None

        def pass_on(number: int, _frame: object) -> None:
            with suppress(OSError):
                line.sendall(json.dumps({"signal": number}).encode() + b"\n")

        before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
        try:
            text = b""
            while received := line.recv(65536):
                text += received
        except OSError:
            text = b""
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    answer: dict[str, Any] = json.loads(text) if text else {"error": "its host ended"}
    if "error" in answer:
        raise LabError(f"{command[0]} on {path.stem}: {answer['error']}", mend="`launch/lab ps` shows what runs where.")
    status: int = answer["status"]
    return status


def _send_request(line: socket.socket, message: bytes) -> None:
    """Send the first line, with the streams on its first byte; one that is closed is replaced by nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        streams = [number if _is_open(number) else nothing for number in range(3)]
        socket.send_fds(line, [message[:1]], streams)
    finally:
        os.close(nothing)
    line.sendall(message[1:])


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@dataclass
class _Caller:
    """Who has called, and what runs for him.

    Attributes:
        text: what has come of a line that is not complete.
        streams: his standard streams, until they are handed to the program.
    """

    line: socket.socket
    text: bytes = b""
    streams: list[int] = field(default_factory=list)
    program: subprocess.Popen[bytes] | None = None


class Server:
    """Answers calls on a host, and reaps whatever is left by parents that have ended, as a first process must.

    Args:
        path: where its socket is to be.
    """

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        # Whoever is not root runs programs as himself only.
        path.chmod(0o666)
        self._listener.listen()
        self._wakeup, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        self._wakeup_end = wakeup
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._running: dict[int, _Caller] = {}

    def serve(self) -> None:
        """Answer for ever."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    line, _ = self._listener.accept()
                    self._selector.register(line, selectors.EVENT_READ, _Caller(line))
                elif key.fileobj is self._wakeup:
                    self._wakeup.recv(4096)
                    self._reap()
                else:
                    self._hear(key.data)

    def _hear(self, caller: _Caller) -> None:
        try:
            if caller.program is None:
                received, streams, _, _ = socket.recv_fds(caller.line, 65536, 3)
                caller.streams += streams
            else:
                received = caller.line.recv(65536)
        except OSError:
            received = b""
        if not received:
            self._hang_up(caller)
            return
        *lines, caller.text = (caller.text + received).split(b"\n")
        for text in lines:
            message = json.loads(text)
            if "signal" in message:
                self._signal(caller, message["signal"])
            else:
                self._start(caller, message)

    def _start(self, caller: _Caller, request: dict[str, Any]) -> None:
        try:
            user = self._user(caller.line, request.get("user"))
            caller.program = subprocess.Popen(
                request["command"],
                stdin=caller.streams[0],
                stdout=caller.streams[1],
                stderr=caller.streams[2],
                env=request["environment"],
                cwd=request["folder"],
                user=user.uid,
                group=user.gid,
                extra_groups=user.groups,
                start_new_session=True,
            )
            self._running[caller.program.pid] = caller
        except (OSError, subprocess.SubprocessError) as error:
            unseen = isinstance(error, FileNotFoundError) and error.filename == request["folder"]
            why = f"the folder {request['folder']} is not seen there: `launch/lab up --share DIR` would share it"
            self._answer(caller, {"error": why if unseen else str(error)})
        finally:
            for stream in caller.streams:
                os.close(stream)
            caller.streams.clear()

    @staticmethod
    def _user(line: socket.socket, asked: dict[str, Any] | None) -> User:
        credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, gid = struct.unpack("3i", credentials)
        return User(**asked) if asked is not None and uid == 0 else User.of(uid, gid)

    @staticmethod
    def _signal(caller: _Caller, number: int) -> None:
        if caller.program is not None:
            with suppress(ProcessLookupError):
                os.killpg(caller.program.pid, number)

    def _hang_up(self, caller: _Caller) -> None:
        """Forget a caller that has gone; what still runs for him is told to end."""
        self._signal(caller, signal.SIGTERM)
        for stream in caller.streams:
            os.close(stream)
        self._selector.unregister(caller.line)
        caller.line.close()
        if caller.program is not None:
            self._running.pop(caller.program.pid, None)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            caller = self._running.pop(pid, None)
            if caller is not None and caller.program is not None:
                code = os.waitstatus_to_exitcode(status)
                caller.program.returncode = code
                caller.program = None
                self._answer(caller, {"status": code if code >= 0 else 128 - code})

    def _answer(self, caller: _Caller, answer: dict[str, Any]) -> None:
        with suppress(OSError):
            caller.line.sendall(json.dumps(answer).encode())
        self._hang_up(caller)
