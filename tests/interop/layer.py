"""Debian's packages in a file system of their own: an overlay over this machine's, which is left as it is.

MTAs of a distribution want root, users of their own, fixed paths, and each wants to be the only one. So each is
installed by ``apt-get`` inside an overlay, in a mount namespace; what that changed is kept as a tar file, the *layer*.
A run unpacks the layer into memory, lays it over the machine's own file system, and starts the server in there, in a
process namespace: when its first process is killed, nothing of it is left.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MODULE_ROOT: Final = Path(__file__).parents[2]
# Downloaded and built servers; not in .venv/, which holds what the product needs.
STORE: Final = Path(os.environ.get("MTA_INTEROP_DIR", MODULE_ROOT / ".interop")).resolve()
WORK: Final = "/interop"  # where a server finds its working directory
INSTALL_S: Final = 900
_BOX: Final = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "sh", "-euc")

# $1: the layer to begin with, or nothing. $2: the working directory, or nothing. In $top: up, root.
_MOUNT = """
top=$(mktemp -d)
mount -t tmpfs -o mode=755 interop "$top"
mkdir "$top/up" "$top/work" "$top/root"
if [ -n "$1" ]; then tar --extract --xattrs --xattrs-include='*' --file "$1" --directory "$top/up"; fi
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/up,workdir=$top/work" "$top/root"
mount --rbind /dev "$top/root/dev"
mount -t proc proc "$top/root/proc"
cp --remove-destination -L /etc/resolv.conf "$top/root/etc/resolv.conf"
mount -t tmpfs -o mode=755 interop-run "$top/root/run"
if [ -n "$2" ]; then mkdir -p "$top/root/interop"; mount --bind "$2" "$top/root/interop"; fi
"""

# Services are not started by the packages' scripts (policy-rc.d), and ask no questions.
_INSTALL = """
printf '#!/bin/sh\\nexit 101\\n' > "$top/root/usr/sbin/policy-rc.d"
chmod 755 "$top/root/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive
chroot "$top/root" sh -euc "$3"
rm -rf "$top/up/var/cache/apt" "$top/up/var/lib/apt/lists" "$top/up/usr/share/doc" "$top/up/dev" "$top/up/proc"
rm -f "$top/up/etc/resolv.conf"
tar --create --xattrs --xattrs-include='*' --file "$4.new" --directory "$top/up" .
mv "$4.new" "$4"
"""


@dataclass(frozen=True)
class Layer:
    """What ``packages`` change on this machine. ``preset``: answers for debconf, a line each."""

    name: str
    packages: Sequence[str]
    preset: Sequence[str] = ()

    @property
    def path(self) -> Path:
        return STORE / "layers" / f"{self.name}.tar"

    @property
    def is_installed(self) -> bool:
        return self.path.is_file()

    def install(self) -> None:
        """Makes the layer; CalledProcessError when the package manager fails."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        answers = "\n".join(self.preset)
        inside = f"""
        apt-get --quiet update || true  # indexes of others than Debian may be out of reach
        printf '%s\\n' {shlex.quote(answers)} | debconf-set-selections
        apt-get --quiet --yes --no-install-recommends install {shlex.join(self.packages)}
        dpkg-query --show --showformat='${{Package}} ${{Version}}\\n' {shlex.join(self.packages)} > /interop-versions
        """
        script = _MOUNT + _INSTALL
        log = STORE / "layers" / f"{self.name}.log"
        with log.open("wb") as file:
            subprocess.run(
                [*_BOX, script, "box", "", "", inside, str(self.path)],
                check=True,
                timeout=INSTALL_S,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def command(self, directory: Path, script: str) -> list[str]:
        """A command that runs ``script`` (of ``sh``) as root in the layer, with ``directory`` at `WORK`.

        Its processes end when the command does.
        """
        return [*_BOX, _MOUNT + 'exec chroot "$top/root" sh -euc "$3"', "box", str(self.path), str(directory), script]

    def version(self) -> str:
        """Of the first package."""
        told = subprocess.run(
            ["tar", "--extract", "--to-stdout", "--file", self.path, "./interop-versions"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        versions = dict(line.split() for line in told.splitlines())
        return versions[self.packages[0]]
