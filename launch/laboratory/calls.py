"""Running a program on a host, from this machine or from another host: as ssh does, without keys and without a network.

A caller connects to the host's socket, which lies in the lab's folder, hands over its standard streams and says what
to run. The host's first process runs it, passes signals on, and answers with its status. If the caller dies, the
program is told to end by TERM. Messages are lines of JSON; the first carries the three streams.

A host hangs on this: so whatever a caller sends, it is he who is hung up on, and nobody but root and the lab's owner is
heard at all.
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

from laboratory.errors import LabError, typed

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LONGEST_REQUEST = 4 << 20
"""Bytes of a line at most: the kernel takes no longer command and environment than half of that by default."""


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
            mend = f"It was killed, or its lab is down; `{typed('ps')}` shows what is left."
            if isinstance(error, PermissionError):
                mend = "Only root and who has made the lab may run programs in it."
            raise LabError(f"the host {path.stem} does not answer: {error.strerror}", mend=mend) from None

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
        raise LabError(
            f"{command[0]} on {path.stem}: {answer['error']}", mend=f"`{typed('ps')}` shows what runs where."
        )
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


@dataclass(frozen=True)
class Request:
    """Program that a caller asks a host to run.

    Attributes:
        command: the program and its arguments.
        environment: all of its environment.
        folder: where it starts.
        user: whom it runs as, where the caller says.
    """

    command: list[str]
    environment: dict[str, str]
    folder: str
    user: User | None

    @classmethod
    def read(cls, message: object) -> "Request":
        """Return the request that a message makes.

        Raises:
            ValueError: it makes none.
        """
        if not isinstance(message, dict):
            raise ValueError("the request is no JSON object")
        command, environment, folder, user = map(message.get, ("command", "environment", "folder", "user"))
        if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
            raise ValueError("the request names no command")
        if not isinstance(environment, dict) or not all(isinstance(value, str) for value in environment.values()):
            raise ValueError("the request has no environment")
        if not isinstance(folder, str):
            raise ValueError("the request names no folder")
        return cls(command, environment, folder, None if user is None else cls._user(user))

    @staticmethod
    def _user(asked: object) -> User:
        if not isinstance(asked, dict) or set(asked) != {"uid", "gid", "groups"} or type(asked["groups"]) is not list:
            raise ValueError("the request names no user")
        if not all(type(number) is int for number in (asked["uid"], asked["gid"], *asked["groups"])):
            raise ValueError("the request names a user without numbers")
        return User(**asked)


@dataclass(eq=False)
class _Caller:
    """A caller's connection, and the program that runs for it.

    Attributes:
        text: what has come of a line that is not complete.
        streams: his standard streams, until they are handed to the program.
        gone: whether he was hung up on.
    """

    line: socket.socket
    text: bytes = b""
    streams: list[int] = field(default_factory=list)
    program: subprocess.Popen[bytes] | None = None
    gone: bool = False


class Server:
    """Answers calls on a host, and reaps whatever is left by parents that have ended, as a first process must.

    Args:
        path: where its socket is to be.
        owner: the user who may call, besides root.
    """

    def __init__(self, path: Path, owner: int) -> None:
        self._owner = owner
        self._listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        self._listener.bind(str(path))
        os.umask(before)
        os.chown(path, owner, -1)
        self._listener.listen()
        self._listener.setblocking(False)
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
                    self._accept()
                elif key.fileobj is self._wakeup:
                    self._wakeup.recv(4096)
                    self._reap()
                else:
                    self._hear(key.data)

    def _accept(self) -> None:
        try:
            line, _ = self._listener.accept()
        except OSError:  # he has gone again, or there are too many
            return
        line.setblocking(False)
        if _peer(line)[0] in (0, self._owner):
            self._selector.register(line, selectors.EVENT_READ, _Caller(line))
        else:
            line.close()

    def _hear(self, caller: _Caller) -> None:
        """Take what a caller has sent; whatever is wrong with it is his alone."""
        if caller.gone:  # since this event was told
            return
        try:
            if received := self._receive(caller):
                self._take(caller, received)
            else:
                self._hang_up(caller)
        except BlockingIOError:
            return
        except Exception as error:  # the host must outlive any message
            self._answer(caller, {"error": f"{type(error).__name__}: {error}"})

    @staticmethod
    def _receive(caller: _Caller) -> bytes:
        received, streams, _, _ = socket.recv_fds(caller.line, 65536, 3)
        if caller.program is None and not caller.streams:
            caller.streams = streams
        else:
            for stream in streams:
                os.close(stream)
        return received

    def _take(self, caller: _Caller, received: bytes) -> None:
        *lines, caller.text = (caller.text + received).split(b"\n")
        if max(map(len, (*lines, caller.text))) > LONGEST_REQUEST:
            raise ValueError(f"the request has more than {LONGEST_REQUEST} bytes")
        for text in lines:
            if caller.gone:
                return
            message = json.loads(text)
            if caller.program is None:
                self._start(caller, Request.read(message))
            elif message["signal"] in PASSED_ON:
                self._signal(caller, message["signal"])

    def _start(self, caller: _Caller, request: Request) -> None:
        if len(caller.streams) != 3:
            raise ValueError("the request comes without the three standard streams")
        uid, gid = _peer(caller.line)
        user = request.user if request.user is not None and uid == 0 else User.of(uid, gid)
        try:
            caller.program = subprocess.Popen(
                request.command,
                stdin=caller.streams[0],
                stdout=caller.streams[1],
                stderr=caller.streams[2],
                env=request.environment,
                cwd=request.folder,
                user=user.uid,
                group=user.gid,
                extra_groups=user.groups,
                start_new_session=True,
            )
            self._running[caller.program.pid] = caller
        except (OSError, subprocess.SubprocessError) as error:
            unseen = isinstance(error, FileNotFoundError) and error.filename == request.folder
            why = f"the folder {request.folder} is not seen there: `{typed('up --share DIR')}` would share it"
            self._answer(caller, {"error": why if unseen else str(error)})
        finally:
            _close(caller.streams)

    @staticmethod
    def _signal(caller: _Caller, number: int) -> None:
        if caller.program is not None:
            with suppress(ProcessLookupError):
                os.killpg(caller.program.pid, number)

    def _hang_up(self, caller: _Caller) -> None:
        """Forget a caller that has gone; what still runs for him is told to end."""
        if caller.gone:
            return
        caller.gone = True
        self._signal(caller, signal.SIGTERM)
        _close(caller.streams)
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


def _peer(line: socket.socket) -> tuple[int, int]:
    """Return the user and the group of the process that has called, as the kernel knows them."""
    credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, gid = struct.unpack("3i", credentials)
    return uid, gid


def _close(streams: list[int]) -> None:
    for stream in streams:
        os.close(stream)
    streams.clear()
