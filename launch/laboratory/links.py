"""Links: a bridge, a cable to each host, their speed, and what the kernel counted on them."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from laboratory.errors import LabError, do, typed

SWITCH = "switch"
"""The bridge's name, in its own network namespace."""

PORT = "eth0"
"""A host's end of its cable."""

HEADERS = 14 + 20 + 32
"""Bytes that Ethernet, IPv4 and TCP (with time stamps) add to a segment: what a packet counts besides payload."""

SEGMENT = 1500 - 20 - 32
"""Largest payload of a TCP segment in bytes: Ethernet's MTU less the headers of IPv4 and TCP (with time stamps)."""

BURST_SECONDS = 0.002
"""Seconds' worth of bytes that a link may send at once, above its speed."""

PATIENCE = 60.0
"""Seconds within which a mended link must carry packets."""


def check_bandwidth(text: str) -> str:
    """Return a link's speed as tc understands it.

    Raises:
        LabError: it is none.
    """
    if text != "none" and not re.fullmatch(r"[1-9]\d*(k|m|g)bit", text):
        raise LabError(f"{text!r} is no bandwidth", mend="Give one such as 100mbit, 1gbit, or none for no limit.")
    return text


def bits_per_second(bandwidth: str) -> int:
    """Return a checked bandwidth in bits a second."""
    return int(bandwidth[:-4]) * {"k": 10**3, "m": 10**6, "g": 10**9}[bandwidth[-4]]


def make_switch() -> None:
    """Make the bridge, in the network namespace that this runs in."""
    silence_ipv6()
    do("ip", "link", "set", "lo", "up")
    do("ip", "link", "add", SWITCH, "type", "bridge")
    do("ip", "link", "set", SWITCH, "up")


def plug_in(name: str, pid: int, bandwidth: str) -> None:
    """Lay a cable from the bridge to a host, and limit what the bridge sends through it.

    Offloading of segmentation is off, so that counters and limits see every packet with its headers, as on a wire.

    Args:
        name: the host's.
        pid: a process in the host's network namespace.
        bandwidth: of the link.
    """
    do("ip", "link", "add", name, "gso_max_segs", 1, "type", "veth", "peer", "name", PORT, "netns", pid)
    do("ip", "link", "set", name, "master", SWITCH)
    shape(name, bandwidth)
    do("ip", "link", "set", name, "up")


def set_up_port(address: str, bandwidth: str) -> None:
    """Bring up a host's end, in its network namespace, and limit what it sends."""
    silence_ipv6()
    do("ip", "link", "set", "lo", "up")
    do("ip", "link", "set", PORT, "gso_max_segs", 1)
    shape(PORT, bandwidth)
    do("ip", "address", "add", f"{address}/16", "dev", PORT)
    do("ip", "link", "set", PORT, "up")


def shape(device: str, bandwidth: str) -> None:
    """Limit what a device sends, by a token bucket."""
    if bandwidth != "none":
        burst = max(16_384, int(bits_per_second(bandwidth) / 8 * BURST_SECONDS))
        do("tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", bandwidth, "burst", burst, "latency", "50ms")


def silence_ipv6() -> None:
    """Have no IPv6 in this network namespace: its own chatter would be counted."""
    for which in ("all", "default"):
        switch = Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6")
        if switch.exists():
            switch.write_text("1\n")


def connect(switch_pid: int, name: str, *, up: bool) -> None:
    """Cut a host's cable at the bridge, or mend it; mended, it carries packets when this returns."""
    within = ("nsenter", f"--target={switch_pid}", "--net", "ip")
    do(*within, "link", "set", name, "up" if up else "down")
    end = time.monotonic() + PATIENCE
    # The kernel notices a carrier up to a second later, and drops what is sent until then.
    while up and json.loads(do(*within, "-json", "link", "show", name))[0]["operstate"] != "UP":
        if time.monotonic() > end:
            raise LabError(f"the link of {name} does not come up", mend=f"Its host may have ended: `{typed('ps')}`.")
        time.sleep(0.05)


@dataclass(frozen=True)
class Traffic:
    """Kernel's counts of a host's link since the lab was made, in bytes and packets.

    Attributes:
        sent_bytes: bytes sent, with all headers.
        sent_packets: packets sent.
        received_bytes: bytes received, with all headers.
        received_packets: packets received.
        retransmitted_segments: TCP segments that the host sent again, of at most `SEGMENT` bytes each. TCP does so if a
            packet is lost, and also if an answer is merely late, as on a busy machine.
    """

    sent_bytes: int
    sent_packets: int
    received_bytes: int
    received_packets: int
    retransmitted_segments: int

    @property
    def sent_payload(self) -> int:
        """Bytes sent without the headers of Ethernet, IP and TCP; retransmitted ones are counted each time."""
        return self.sent_bytes - HEADERS * self.sent_packets


def traffic(pid: int) -> Traffic:
    """Return the counters of the network namespace that a process is in."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, counters = line.strip().partition(":")
        if name == PORT:
            numbers = [int(word) for word in counters.split()]
            return Traffic(numbers[8], numbers[9], numbers[0], numbers[1], retransmitted_segments(pid))
    raise LabError(f"process {pid} has no {PORT}", mend=f"Its host has ended; `{typed('down')}` removes the lab.")


def retransmitted_segments(pid: int) -> int:
    """Return the TCP segments that were sent again in the network namespace that a process is in."""
    lines = Path(f"/proc/{pid}/net/snmp").read_text().splitlines()
    names, counters = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(counters[names.index("RetransSegs")])
