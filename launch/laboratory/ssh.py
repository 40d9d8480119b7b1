"""OpenSSH in a lab: keys of its own, and an sshd on each host, by which mpirun on one host starts ranks on the others.

All hosts see one folder as /etc/ssh, so that plain `ssh n2` works, for the lab's owner alone: nobody else may read the
key or log in. From outside of the lab its network cannot be reached.
"""

import pwd
import shutil
import subprocess
import time
from pathlib import Path

from laboratory.errors import LabError, do, typed

FOLDER = Path("/etc/ssh")
LOG = Path("/run/sshd.log")
READY = Path("/run/sshd.pid")
PATIENCE = 60.0

CLIENT = """\
Host *
    BatchMode yes
    IdentitiesOnly yes
    IdentityFile /etc/ssh/key
    KexAlgorithms curve25519-sha256
    GlobalKnownHostsFile /etc/ssh/known_hosts
    UserKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    # Of a host that is cut off nothing is heard again, and ssh would wait for it for a quarter of an hour.
    ServerAliveInterval 5
    ServerAliveCountMax 3
    LogLevel ERROR
"""
# PAM would look for the services of a whole system, which a host has not. By SHLVL bash reads no ~/.bashrc, which may
# take longer than all the rest.
DAEMON = """\
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/key.pub
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowUsers {owner}
SetEnv SHLVL=1
UsePAM no
PidFile {ready}
"""


def prepare(folder: Path, owner: str) -> None:
    """Write what hosts see as /etc/ssh: the owner's key, the hosts' key, and the settings of both sides."""
    folder.mkdir()
    for key in (folder / "key", folder / "host_key"):
        do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key)
    user = pwd.getpwnam(owner)
    shutil.chown(folder / "key", user.pw_uid, user.pw_gid)
    (folder / "known_hosts").write_text(f"* {(folder / 'host_key.pub').read_text()}")
    (folder / "ssh_config").write_text(CLIENT)
    (folder / "sshd_config").write_text(DAEMON.format(owner=owner, ready=READY))


def start_daemon(address: str) -> None:
    """Start sshd on this host, and wait until it listens on an address.

    Raises:
        LabError: it does not.
    """
    Path("/run/sshd").mkdir()  # sshd goes there before it knows who calls
    command = [shutil.which("sshd") or "sshd", "-D", "-e", "-o", f"ListenAddress={address}"]
    with LOG.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    end = time.monotonic() + PATIENCE
    while not READY.exists():
        if process.poll() is not None or time.monotonic() > end:
            said = " ".join(LOG.read_text().split()) or "it is silent"
            raise LabError(f"sshd does not listen on {address}: {said}", mend=f"`{typed('down')}` removes the rest.")
        time.sleep(0.005)
