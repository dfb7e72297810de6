"""Machines that are none: network namespaces with their own processes, /tmp, home folder and ssh server.

All of it lives in one namespace of processes whose first one ends with the test process, however that ends: the kernel
then kills the rest, and with it go the networks and mounts. Nothing is left to clean up but a folder.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, wait_until

ADDRESSES = ("10.231.0.11", "10.231.0.12", "10.231.0.13")
CLIENT = "10.231.0.1"

_OWN_TMP = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/shared /mnt/upper /mnt/work
mount --bind {shared} /mnt/shared
mount -t overlay -o lowerdir=/tmp,upperdir=/mnt/upper,workdir=/mnt/work overlay /tmp
mkdir -p {shared}
mount --bind /mnt/shared {shared}
rm -rf /tmp/ray
mount -t tmpfs tmpfs /dev/shm
"""
"""Whatever is written to /tmp stays with the machine; only one folder is shared."""

_NETWORK = """
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add br0 type bridge
ip address add {client}/24 dev br0
ip link set br0 up
"""

_CABLE = """
ip netns add {name}
ip link add {name} type veth peer name eth0 netns {name}
ip link set {name} master br0 up
ip -n {name} link set lo up
ip -n {name} address add {address}/24 dev eth0
ip -n {name} link set eth0 up
"""

_HOST = """
set -e
{own_tmp}
mount -t tmpfs tmpfs /run
mkdir /run/sshd
hostname {name}
echo "127.0.0.1 localhost
127.0.1.1 {name}" > /mnt/hosts
mount --bind /mnt/hosts /etc/hosts
sed 's|^root:.*|root:x:0:0:root:{home}:/bin/bash|' /etc/passwd > /mnt/passwd
mount --bind /mnt/passwd /etc/passwd
exec {sshd} -D -e -f {config}
"""

_SSHD = """
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
"""


class Hosts:
    """Machines on one network, and the one that this process acts as.

    Attributes:
        key: private key that their ssh servers know.
        shared: folder that all of them see.
        home: home folder of the client.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self._first = first
        self.key = folder / "key"
        self.shared = folder / "shared"
        self.home = folder / "client"

    def command(self, *words: str) -> list[str]:
        """Return the command that runs another one on the client."""
        return ["nsenter", "-t", str(self._first), "-n", "-m", "-p", f"--wdns={ROOT}", *words]

    def run(self, *words: str, seconds: float = 120.0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the client, which may fail."""
        return subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=self.environment | environment,
        )

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a person who sits at the client."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        return kept | {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONWARNINGS": "ignore",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def ssh(self, address: str, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine, in a login shell as Ray does."""
        options = ("-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
        return self.run("ssh", "-q", *options, f"root@{address}", f"bash --login -c {shlex.quote(command)}")

    def processes(self, address: str) -> list[str]:
        """Return the command lines of what runs on a machine, but for its ssh server and what asks."""
        done = self.ssh(address, "ps -eo pid=,stat=,args=")
        assert done.returncode == 0, done.stderr
        rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
        own = ("sshd", "bash", "ps -eo", "[")
        return [args for _, stat, args in rows if not args.removeprefix("-").startswith(own) and stat[0] != "Z"]


def missing() -> str | None:
    """Return why there can be no such machines here."""
    if os.getuid() != 0:
        return "wants root"
    programs = ("unshare", "nsenter", "ip", "ssh", "ssh-keygen", "rsync")
    lacking = [name for name in programs if shutil.which(name) is None]
    if _sshd() is None:
        lacking.append("sshd")
    if lacking:
        return f"{', '.join(lacking)} not installed here (Debian: apt-get install iproute2 openssh-server rsync)"
    probe = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w && ip link add br0 type bridge && "
    probe += "mount -t overlay -o lowerdir=/tmp,upperdir=/mnt/u,workdir=/mnt/w overlay /tmp"
    done = subprocess.run(
        ["unshare", "-n", "-m", "-p", "-u", "-f", "--kill-child", "--mount-proc", "bash", "-c", probe],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces cannot be made here: {done.stderr.strip()}" if done.returncode else None


def _sshd() -> str | None:
    return shutil.which("sshd", path=f"/usr/sbin:{os.environ['PATH']}")


@contextlib.contextmanager
def hosts(folder: Path) -> Iterator[Hosts]:
    """Make one machine for each of ADDRESSES.

    Args:
        folder: empty; the machines' home folders, keys and logs lie there, and `shared`, which all see.
    """
    reason = missing()
    if reason:
        pytest.skip(reason)
    for name in ("shared", "client"):
        (folder / name).mkdir()
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    # It ends when its input does, and that when this process does.
    keeper = subprocess.Popen(
        ["unshare", "-n", "-m", "-p", "-f", "--kill-child", "--mount-proc", "cat"], stdin=subprocess.PIPE
    )
    started: list[subprocess.Popen[bytes]] = []
    try:
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children")
        wait_until(lambda: children.read_text().split(), 10)
        first = int(children.read_text())
        wait_until(lambda: Path(f"/proc/{first}/comm").read_text().strip() == "cat", 10)
        machines = Hosts(folder, first)
        own_tmp = _OWN_TMP.format(shared=shlex.quote(str(machines.shared)))
        names = [f"host{number}" for number in range(1, len(ADDRESSES) + 1)]
        cables = [_CABLE.format(name=name, address=address) for name, address in zip(names, ADDRESSES, strict=True)]
        _script(machines, f"set -e{own_tmp}{_NETWORK.format(client=CLIENT)}{''.join(cables)}")
        for name, address in zip(names, ADDRESSES, strict=True):
            started.append(_start(machines, folder / name, name, address, own_tmp))
        for address in ADDRESSES:
            wait_until(lambda address=address: machines.ssh(address, "true").returncode == 0, 30)  # type: ignore[misc]
        yield machines
    finally:
        keeper.kill()  # and, being its child, the first process, and so all
        keeper.communicate()
        for process in started:
            process.wait()


def _script(machines: Hosts, text: str) -> None:
    done = machines.run("bash", "-c", text)
    assert done.returncode == 0, done.stderr


def _start(machines: Hosts, home: Path, name: str, address: str, own_tmp: str) -> subprocess.Popen[bytes]:
    home.mkdir()
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve().parent
    (home / ".profile").write_text(f'export PATH="{python}:$PATH"\n. ~/.bashrc\n')
    (home / ".bashrc").write_text("# What comes with the machine.\n")
    config = home.parent / f"{name}.sshd"
    config.write_text(_SSHD.format(address=address, folder=home.parent))
    script = _HOST.format(own_tmp=own_tmp, name=name, home=home, sshd=_sshd(), config=config)
    separate = ("unshare", "-m", "-p", "-u", "-f", "--kill-child", "--mount-proc")
    with (home.parent / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            machines.command("ip", "netns", "exec", name, *separate, "bash", "-c", script),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
