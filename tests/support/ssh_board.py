"""A board behind a real sshd, reached through a cable that can be cut.

ssh's ProxyCommand runs this file, which runs `sshd -i` and passes bytes both ways: no port, no daemon, and
nothing of the machine's own ssh is read or written. The sessions' home is a directory of the test.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@dataclass(frozen=True)
class Board:
    """`config` is an ssh_config in which the board is called `board`; `home` is the sessions' home."""

    config: Path
    home: Path
    place: Path

    def cut_after(self, sent: int | None = None, *, received: int | None = None) -> None:
        """Cuts the next connections after so many bytes in one direction."""
        (self.place / "cut").write_text(f"{sent if sent is not None else -1} {received or -1}")

    def cut_now(self) -> None:
        """Cuts the cable that is in use."""
        for line in (self.place / "cables").read_text().split():
            try:
                os.kill(int(line), signal.SIGKILL)
            except ProcessLookupError:
                continue

    def cut_before(self, command: str) -> None:
        """Cuts the cable when the agent is called with this command, a pattern; it does not run then."""
        door, words = self.place / "door", command.replace(" ", r"\ ")
        door.write_text(
            f'#!/bin/sh\ncase "$SSH_ORIGINAL_COMMAND" in *.pyz*\\ {words}\\ *|*.pyz*\\ {words})\n'
            f"  for one in $(cat {self.place}/cables); do kill -9 $one 2>/dev/null; done; exit 1\nesac\n"
            'exec "$SHELL" -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        door.chmod(0o755)
        with (self.place / "sshd_config").open("a") as config:  # read anew for every connection
            config.write(f"ForceCommand {door}\n")

    def reconnect(self) -> None:
        """Lets connections live."""
        (self.place / "cut").write_text("-1 -1")
        (self.place / "door").write_text('exec "$SHELL" -c "$SSH_ORIGINAL_COMMAND"\n')

    def lay_over(self, root: Path) -> None:
        """Lays a board's `etc` and `sys/class` over this machine's, in the sessions alone; needs root."""
        enter = self.place / "enter"
        enter.write_text(
            f"set -e\nmount -t overlay none -o lowerdir={root}/etc:/etc /etc\n"
            f"mount --bind {root}/sys/class /sys/class\nexec {SSHD} -i -e -f {self.place}/sshd_config\n"
        )
        text = self.config.read_text().rstrip("\n")
        self.config.write_text(f"{text} unshare --mount sh {enter}\n")  # its last line is the ProxyCommand

    def traffic(self) -> list[int]:
        """Bytes that each connection sent to the board, in order."""
        cables = (self.place / "cables").read_text().split()
        return [int((self.place / f"sent.{cable}").read_text() or 0) for cable in cables]


def make_board(
    place: Path, *, name: str = "board", python: str = "", environment: Mapping[str, object] | None = None
) -> Board:
    """Keys, a configuration for both sides, and a home. `python` comes first on the board's PATH."""
    place.mkdir(parents=True, exist_ok=True)
    home, folder = place / "home", f"{python}:" if python else ""
    home.mkdir()
    for key in ("host", "user"):
        new_key(place / key)
    (place / "authorized").write_text((place / "user.pub").read_text())
    server = {
        "HostKey": place / "host",
        "AuthorizedKeysFile": place / "authorized",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "UsePAM": "no",
        "StrictModes": "no",
        "PermitRootLogin": "yes",
        "PidFile": "none",
        "SetEnv": f"HOME={home} PATH={folder}/usr/local/bin:/usr/bin:/bin"
        + "".join(f" {key}={value}" for key, value in (environment or {}).items()),
    }
    (place / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in server.items()))
    trust_host(place, name)
    config = {
        "Host": name,
        "User": os.environ.get("USER") or "root",
        "IdentityFile": place / "user",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": place / "known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "ProxyCommand": f"{sys.executable} {Path(__file__).resolve()} {place}",
    }
    (place / "ssh_config").write_text("".join(f"{key} {value}\n" for key, value in config.items()))
    board = Board(place / "ssh_config", home, place)
    board.reconnect()
    return board


def new_key(path: Path) -> None:
    """Makes a key, in place of the one that may be there."""
    path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def make_two(place: Path, *, python: str) -> tuple[Board, Board, Path]:
    """The boards `one` and `two`, and an ssh_config of both."""
    one, two = (make_board(place / name, name=name, python=python) for name in ("one", "two"))
    (place / "both").write_text(one.config.read_text() + two.config.read_text())
    return one, two, place / "both"


def trust_host(place: Path, name: str = "board") -> None:
    """Makes the workstation know the board's present host key."""
    public = " ".join((place / "host.pub").read_text().split()[:2])
    (place / "known_hosts").write_text(f"{name} {public}\n")


def main() -> None:
    """The cable: this process between ssh, on stdin and stdout, and a fresh sshd."""
    place = Path(sys.argv[1])
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (place / "cables").open("a") as cables:
        cables.write(f"{os.getpid()}\n")
    mine, theirs = socket.socketpair()
    command = sys.argv[2:] or [str(SSHD), "-i", "-e", "-f", str(place / "sshd_config")]
    with (place / "sshd.log").open("ab") as log:
        server = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=log)
    theirs.close()
    most_sent, most_received = (int(word) for word in (place / "cut").read_text().split())
    sent = received = 0
    with selectors.DefaultSelector() as ready:
        ready.register(0, selectors.EVENT_READ)
        ready.register(mine, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                from_board = key.fileobj is mine
                data = mine.recv(1 << 15) if from_board else os.read(0, 1 << 15)
                if not data:
                    mine.close()
                    server.wait()
                    return
                if from_board:
                    received += len(data)
                    os.write(1, data)
                else:
                    sent += len(data)
                    unfinished = place / f"sent.{os.getpid()}.part"  # the other is never read while empty
                    unfinished.write_text(str(sent))
                    unfinished.replace(place / f"sent.{os.getpid()}")
                    mine.sendall(data)
                if 0 <= most_sent < sent or 0 <= most_received < received:
                    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
