"""Hosts on one machine: what each has for itself, what crosses their links, what is left of them, and messages."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from laboratory import links, packages, state
from laboratory.__main__ import main
from laboratory.errors import LabError
from laboratory.making import cores_of

from . import labs

BYTES = 3_000_000
SENDER = f"""
import json, socket, struct, sys
with socket.create_connection(("n2", 5000)) as line:
    if sys.argv[1:]:
        print("connected", flush=True)
        sys.stdin.readline()
    line.sendall(bytes({BYTES}))
    line.shutdown(socket.SHUT_WR)
    line.recv(1)
    # struct tcp_info of linux/tcp.h: tcpi_total_retrans; tcpi_bytes_sent and tcpi_bytes_retrans.
    info = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
segments = struct.unpack_from("=I", info, 100)[0]
sent, again = struct.unpack_from("=QQ", info, 200)
print(json.dumps({{"sent": sent, "again": again, "segments": segments}}))
"""
"""Sends; prints its connection's own account of what went out and of what went out again, in bytes and segments. Given
a word, it first says that it is connected, and waits for a line."""

RECEIVER = """
import socket
with socket.create_server(("", 5000)) as server:
    print("listening", flush=True)
    line, _ = server.accept()
    while line.recv(65536):
        pass
"""


def interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def children_of_no_lab(name: str) -> list[str]:
    """Return the command lines of living processes of a lab, told by its name or its program."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes().decode().replace("\0", " ")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "laboratory." in command and f"RESIST_HVD_LAB_TEST={name}" in environment:
                found.append(command)
    return found


def test_hosts_have_names_addresses_and_folders_of_their_own(lab_of_two: labs.Lab) -> None:
    lab = lab_of_two
    lab.ask("touch", "/tmp/on-head", "/dev/shm/on-head", "/run/on-head")
    program = "import os, socket; print(socket.gethostname(), socket.gethostbyname('n2'), sorted(os.listdir('/run')))"
    seen = lab.do("run", "--on", "n2", sys.executable, "-c", program).stdout
    assert seen.startswith("n2 10.77.1.2 ")
    assert "on-head" not in seen
    for folder in ("/tmp", "/dev/shm"):
        assert "on-head" not in lab.do("run", "--on", "n1", "ls", folder).stdout
        assert not Path(folder, "on-head").exists()
    assert lab.ask("ls", str(labs.ROOT / "launch/lab")).strip() == str(labs.ROOT / "launch/lab")


def test_hosts_have_cores_of_their_own(lab_of_two: labs.Lab) -> None:
    tell = "import os; print(*sorted(os.sched_getaffinity(0)))"
    found = [lab_of_two.do("run", "--on", host, sys.executable, "-c", tell).stdout.split() for host in ("n1", "n2")]
    all_cores = {str(core) for core in os.sched_getaffinity(0)}
    assert all(found)
    assert set(found[0]) | set(found[1]) <= all_cores
    assert set(found[0]).isdisjoint(found[1]) or len(all_cores) == 1


@pytest.mark.parametrize(
    ("hosts", "cores", "expected"),
    [
        (2, [0, 1], [[0], [1]]),
        (4, [0, 1], [[0], [1], [0], [1]]),
        (2, [3, 4, 5, 8, 9], [[3, 4], [5, 8]]),
        (3, [7], [[7], [7], [7]]),
    ],
)
def test_cores_are_shared_out_evenly(hosts: int, cores: list[int], expected: list[list[int]]) -> None:
    assert [cores_of(number, hosts, cores) for number in range(hosts)] == expected


def test_status_streams_and_signals_pass_through(lab_of_two: labs.Lab) -> None:
    lab = lab_of_two
    ended = lab.do("run", "--on", "n1", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (ended.status, ended.stdout, ended.stderr) == (7, "out\n", "err\n")
    process = subprocess.Popen(
        lab.command("run", "--on", "n1", "sh", "-c", "trap 'exit 9' USR2; echo on; while :; do sleep 0.05; done"),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=300) == 9
    lab.assert_empty()


def test_killed_caller_leaves_nothing_on_the_host(lab_of_two: labs.Lab) -> None:
    process = subprocess.Popen(lab_of_two.command("run", "--on", "n1", "sh", "-c", "sleep 600; true"))
    labs.wait_until(lambda: len(lab_of_two.processes()["n1"]) == 2, lambda: "it never ran")
    process.kill()
    process.wait()
    lab_of_two.assert_empty()


@contextmanager
def receiver(lab: labs.Lab) -> Iterator[None]:
    """Have n2 listen; it must have received everything in the end."""
    command = lab.command("run", "--on", "n2", sys.executable, "-c", RECEIVER)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield
        assert process.wait(timeout=labs.LONGEST) == 0


def test_links_count_what_is_sent_and_are_as_fast_as_asked(lab_of_two: labs.Lab) -> None:
    lab = lab_of_two
    with receiver(lab):
        before = lab.traffic()
        own = json.loads(lab.do("run", "--on", "n1", sys.executable, "-c", SENDER).stdout)
    after = lab.traffic()
    n1 = {name: after["n1"][name] - before["n1"][name] for name in after["n1"]}
    # A segment whose answer is late goes out twice, which is any busy machine's right; it must be counted as such.
    assert own["sent"] - own["again"] == BYTES
    assert n1["retransmitted_segments"] == own["segments"]
    assert own["again"] <= links.SEGMENT * own["segments"]
    assert BYTES - 3_000 < n1["sent_payload"] < own["sent"] + 3_000, "headers are not counted as stated"
    lost = n1["sent_bytes"] - (after["n2"]["received_bytes"] - before["n2"]["received_bytes"])
    assert -1_000 < lost < 1_000 + (links.SEGMENT + links.HEADERS) * own["segments"]
    # No packet is larger than a wire's.
    assert n1["sent_packets"] >= BYTES / links.SEGMENT
    shaping = lab.do("run", "--on", "n1", "tc", "qdisc", "show", "dev", "eth0").stdout
    assert re.search(r"qdisc tbf .* rate 1Gbit burst 2\d+", shaping), shaping


def test_cable_can_be_cut_and_mended(lab_of_two: labs.Lab) -> None:
    lab = lab_of_two
    carrier = ("run", "--on", "n2", "ip", "-brief", "link", "show", "eth0")
    assert " UP " in lab.do(*carrier).stdout
    sender = lab.command("run", "--on", "n1", sys.executable, "-c", SENDER, "wait")
    with receiver(lab), subprocess.Popen(sender, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        before = lab.traffic()["n1"]["retransmitted_segments"]
        assert lab.do("cut", "n2").status == 0
        labs.wait_until(lambda: "NO-CARRIER" in lab.do(*carrier).stdout, lambda: lab.do(*carrier).stdout)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        labs.wait_until(lambda: lab.traffic()["n1"]["retransmitted_segments"] > before, lambda: "nothing is sent again")
        assert lab.do("mend", "n2").status == 0
        labs.wait_until(lambda: "NO-CARRIER" not in lab.do(*carrier).stdout, lambda: lab.do(*carrier).stdout)
        assert process.wait(timeout=labs.LONGEST) == 0


def test_host_can_be_paused_resumed_and_killed(lab_of_two: labs.Lab) -> None:
    lab = lab_of_two
    with subprocess.Popen(lab.command("run", "--on", "n2", "sleep", "600")) as process:
        labs.wait_until(lambda: bool(lab.processes()["n2"]), lambda: "it never ran")
        lab.do("pause", "n2")
        labs.wait_until(lambda: lab.processes()["n2"][0]["state"] == "T", lambda: str(lab.processes()))
        lab.do("resume", "n2")
        labs.wait_until(lambda: lab.processes()["n2"][0]["state"] == "S", lambda: str(lab.processes()))
        lab.do("kill", "n2")
        process.wait(timeout=300)
        lab.assert_empty()
    ended = lab.do("run", "--on", "n2", "true")
    assert ended.status == 2
    assert "launch/lab: the host n2 has ended" in ended.stderr
    assert lab.do("run", "--on", "n1", "true").status == 0


def test_nothing_is_seen_outside_nor_left_behind(needs_lab: None, tmp_path: Path) -> None:
    before = interfaces(), mounts()
    with labs.made(tmp_path, hosts=2) as lab:
        assert (interfaces(), mounts()) == before
        folder = state.folder_of(lab.name)
        assert folder.exists()
    assert (interfaces(), mounts()) == before
    assert not folder.exists()


@pytest.mark.parametrize("after", [0.05, 0.15, 0.3, 0.6])
def test_killed_while_it_is_made_it_can_be_removed_and_made_anew(needs_lab: None, tmp_path: Path, after: float) -> None:
    lab = labs.Lab(f"test-killed-{int(after * 100)}", tmp_path)
    before = interfaces(), mounts()
    try:
        process = subprocess.Popen(
            lab.command("up", "--hosts", "3"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"RESIST_HVD_LAB_TEST": lab.name},
        )
        time.sleep(after)  # a moment of its making; whichever it is, the rest must hold
        process.kill()
        process.wait()
        if after != 0.3:
            assert lab.do("down").status == 0
            labs.wait_until(lambda: not children_of_no_lab(lab.name), lambda: str(children_of_no_lab(lab.name)))
        made = lab.do("up", "--hosts", "1")
        assert made.status == 0 or "is up already" in made.stderr, made
        assert lab.do("run", "--on", "n1", "true").status == 0
    finally:
        lab.do("down")
    labs.wait_until(lambda: not children_of_no_lab(lab.name), lambda: str(children_of_no_lab(lab.name)))
    assert (interfaces(), mounts()) == before


def test_killed_keeper_takes_all_hosts_with_it(needs_lab: None, tmp_path: Path) -> None:
    with labs.made(tmp_path, hosts=2) as lab:
        process = subprocess.Popen(lab.command("run", "--on", "n2", "sleep", "600"), stderr=subprocess.PIPE)
        labs.wait_until(lambda: bool(lab.processes()["n2"]), lambda: "it never ran")
        made = state.running(lab.name)
        os.kill(made.keeper, signal.SIGKILL)
        _, said = process.communicate(timeout=300)
        assert b"its host ended" in said
        assert f"is not up. Make it by `launch/lab up --name {lab.name}`." in lab.do("ps").stderr
        assert lab.do("up", "--hosts", "1").status == 0


def test_second_lab_of_a_name_is_refused(lab_of_two: labs.Lab) -> None:
    ended = lab_of_two.do("up")
    assert ended.status == 2
    assert f"the lab '{lab_of_two.name}' is up already" in ended.stderr
    assert f"launch/lab down --name {lab_of_two.name}" in ended.stderr


def test_unknown_hosts_and_programs_are_named(lab_of_two: labs.Lab) -> None:
    assert "'n9' is no host of this lab. It has head, n1, n2." in lab_of_two.do("cut", "n9").stderr
    assert "No such file or directory: 'no-such'" in lab_of_two.do("run", "no-such").stderr
    assert "there is no command to run" in lab_of_two.do("run").stderr
    assert "nothing runs as rank3" in lab_of_two.do("pause", "rank3").stderr


def test_folder_that_a_host_does_not_see_is_named(
    lab_of_two: labs.Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    ended = labs.Lab(lab_of_two.name, elsewhere).do("run", "true")
    assert f"the folder {elsewhere} is not seen there" in ended.stderr
    assert f"launch/lab up --name {lab_of_two.name} --share DIR" in ended.stderr


def test_down_without_a_lab_is_no_error(needs_lab: None, tmp_path: Path) -> None:
    ended = labs.Lab("test-none", tmp_path).do("down")
    assert (ended.status, ended.stdout) == (0, "there was no lab 'test-none'\n")


def test_wrong_sizes_speeds_and_names_are_refused(needs_lab: None, tmp_path: Path) -> None:
    lab = labs.Lab("test-wrong", tmp_path)
    assert "0 hosts cannot be made. Give 1 to 200." in lab.do("up", "--hosts", "0").stderr
    assert "'fast' is no bandwidth" in lab.do("up", "--bandwidth", "fast").stderr
    assert "there is no folder /tmp/no-such to share" in lab.do("up", "--share", "/tmp/no-such").stderr
    assert "'../x' cannot name a lab" in labs.Lab("../x", tmp_path).do("up").stderr


def test_without_root_it_says_so_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["up"]) == 2
    said = "launch/lab: making hosts and looking after them needs root. Run it as root, as by sudo.\n"
    assert capsys.readouterr() == ("", said)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = {"no-such-program": "package-b", "libno-such.so": "package-a", "sh": "dash"}
    with pytest.raises(LabError, match="packages are missing: package-a package-b"):
        packages.require(programs, install=False)
    asked: list[str] = []
    monkeypatch.setattr(packages, "install_packages", asked.extend)
    with pytest.raises(LabError, match="are missing: package-a package-b"):
        packages.require(programs, install=True)
    assert asked == ["package-a", "package-b"]


@pytest.mark.parametrize(("text", "bits"), [("1gbit", 10**9), ("250mbit", 250 * 10**6), ("64kbit", 64_000)])
def test_bandwidths_are_read_as_tc_reads_them(text: str, bits: int) -> None:
    assert links.bits_per_second(links.check_bandwidth(text)) == bits


@pytest.mark.parametrize("text", ["", "1gbps", "0mbit", "1.5gbit", "1 gbit", "gbit"])
def test_other_bandwidths_are_refused(text: str) -> None:
    with pytest.raises(LabError, match="is no bandwidth"):
        links.check_bandwidth(text)
