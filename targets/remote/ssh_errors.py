"""What passes over ssh before there is an agent, and what ssh's and the agent's errors mean.

The first words are plain sh, since nothing else is there yet: look for a Python, say where the agent lies.
ssh ends with 255 when it is itself what failed, and only its words tell how.
"""

from __future__ import annotations

import shlex
from typing import Dict, Mapping, Type

from ..errors import ArtifactError, DeadweightError, MeasurementError, ModelError, RefusedError, TargetError

_HOME = '"$HOME/.cache/deadweight"'
_FIND = f"""
home={_HOME}
found=
for name in python3 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8; do
  place=$(command -v "$name") || continue
  found=$("$place" -c 'import sys; print("Python %d.%d" % sys.version_info[:2])')
  if "$place" -c 'import sys; sys.exit(sys.version_info < (3, 8))'; then python=$place; break; fi
done
echo "deadweight_python=$python"
echo "deadweight_found=$found"
echo "deadweight_home=$home"
[ -f "$home/agent-SHA256.pyz" ] && echo deadweight_agent=here
exit 0
"""
HELLO = "sh -c " + shlex.quote(_FIND)
"""Asks which Python there is and whether the agent of this hash lies there, whatever the login shell is."""

# What the words of ssh mean, and the cure. The first that is found counts.
_REASONS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "{name} shows another host key than it used to: it was installed anew, or it is another machine.",
        "If you know why, forget the old one: ssh-keygen -R {host}. If not, do not connect.",
    ),
    (
        "Host key verification failed",
        "{name} is not known to this machine yet.",
        "Connect once by hand, compare the fingerprint and say yes: ssh {name}",
    ),
    (
        "Permission denied",
        "{name} does not let you in.",
        "Give it your key: ssh-copy-id {name}. A key with a passphrase must be in ssh-agent (ssh-add).",
    ),
    (
        "Could not resolve hostname",
        "There is no machine called {host}.",
        "Check the name, or add it to ~/.ssh/config. By USB a Jetson is 192.168.55.1.",
    ),
    (
        "Connection refused",
        "{name} is there, but takes no ssh connections.",
        "On the board: sudo apt install openssh-server && sudo systemctl enable --now ssh",
    ),
    (
        "No space left on device",
        "{name} has no space left.",
        "Free some on the board: rm -r ~/.cache/deadweight/files holds old copies.",
    ),
    (
        "timed out",
        "{name} does not answer.",
        "See that it is switched on and the cable is in: ping {host}",
    ),
    ("No route to host", "{name} cannot be reached.", "See that both are on one network: ping {host}"),
    ("Bad configuration option", "ssh does not understand its configuration.", "Mend it: {words}"),
)


def connection_error(name: str, heard: str, doing: str, *, reached: bool = False) -> TargetError:
    """What went wrong with a connection, from ssh's words. `reached`: not ssh failed but what it ran."""
    host = name.rpartition("@")[2]
    words = heard.strip().splitlines()[-1] if heard.strip() else "no reason was given"
    for sign, what, cure in _REASONS:
        if sign in heard:
            return TargetError(
                what.format(name=name, host=host), cure.format(name=name, host=host, words=words)
            )
    if reached:
        return TargetError(
            f"{name} was reached, but {doing} failed: {words}.", f"Try a shell there: ssh {name} sh -c true"
        )
    return TargetError(
        f"The connection to {name} broke while {doing}: {words}",
        "Run the same command again: what has arrived is kept, and nothing half-written is used.",
    )


def keep_command(sha256: str) -> str:
    """Reads the agent from stdin and keeps it, if it is whole."""
    script = (
        f'umask 077; d={_HOME}; mkdir -p "$d" && cat > "$d/.agent.$$" && '
        f'[ "$(sha256sum < "$d/.agent.$$" | cut -c1-64)" = {sha256} ] && '
        f'mv "$d/.agent.$$" "$d/agent-{sha256}.pyz" || {{ rm -f "$d/.agent.$$"; exit 1; }}'
    )
    return "sh -c " + shlex.quote(script)


_KINDS: Mapping[str, Type[DeadweightError]] = {
    kind.__name__: kind for kind in (ArtifactError, MeasurementError, ModelError, RefusedError, TargetError)
}


def error_of(told: Dict[str, str], name: str) -> DeadweightError:
    """The error that the agent met, of the same kind, said to have been met there."""
    kind = _KINDS.get(str(told.get("kind")), TargetError)
    where = "" if name == "local" else f"On {name}: "
    return kind(f"{where}{told.get('what', 'it failed.')}", str(told.get("cure", "Try again.")))
