"""Two machines on one: network namespaces with a cable between them that can be cut, and their own host names.

They share all files, as on a cluster. Needs root and iproute2.
"""

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Machine:
    """A network namespace, with its end of the cable."""

    name: str
    device: str
    address: str

    @property
    def files(self) -> Path:
        """Folder whose files replace those of /etc for commands there."""
        return Path("/etc/netns") / self.name

    def cut(self) -> None:
        ip("-n", self.name, "link", "set", self.device, "down")

    def mend(self) -> None:
        ip("-n", self.name, "link", "set", self.device, "up")

    def bytes_sent(self) -> int:
        links = json.loads(ip("-n", self.name, "-j", "-s", "link", "show", self.device))
        return links[0]["stats64"]["tx"]["bytes"]

    def command(self, *words: str) -> list[str]:
        """Return a command that runs these words there."""
        inside = f'hostname {self.name} && exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", inside, "sh", *words]


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str | None:
    """Return why there cannot be machines here; None if there can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "network namespaces need iproute2"
    name = f"sdxl-{os.getpid()}-probe"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except OSError as error:
        return f"no network namespaces here: {error}"
    return None


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Yield two machines, which are removed in any case."""
    number = os.getpid()
    machines = [Machine(f"sdxl-{number}-{end}", f"cable{number}{end}", f"10.77.0.{1 + place}") for place, end in
                enumerate("ab")]  # fmt: skip
    try:
        hosts = "127.0.0.1 localhost\n" + "".join(f"{machine.address} {machine.name}\n" for machine in machines)
        for machine in machines:
            ip("netns", "add", machine.name)
            machine.files.mkdir(parents=True)
            (machine.files / "hosts").write_text(hosts)
        ip("link", "add", machines[0].device, "netns", machines[0].name, "type", "veth",
           "peer", "name", machines[1].device, "netns", machines[1].name)  # fmt: skip
        for machine in machines:
            ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", machine.device)
            ip("-n", machine.name, "link", "set", "lo", "up")
            ip("-n", machine.name, "link", "set", machine.device, "up")
        yield machines[0], machines[1]
    finally:
        for machine in machines:
            with contextlib.suppress(OSError):
                ip("netns", "delete", machine.name)
            shutil.rmtree(machine.files, ignore_errors=True)


def enter(machine: Machine) -> None:
    """Move this process to that machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{machine.name}", encoding="utf-8") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) or libc.unshare(CLONE_NEWUTS):
            raise OSError(ctypes.get_errno(), f"cannot enter {machine.name}")
    socket.sethostname(machine.name)
