"""Power modes of a Jetson: set for a measurement, and set back however it ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence

from ..errors import TargetError, meant
from . import jetson, nvidia_tools

_SET_S = 60.0
_GUARD = 'trap "" HUP INT TERM; read end; exec "$@"'
"""Waits for the end of its input, which comes with the end of the process that began it."""


def power_mode_ids(root: Path, names: Sequence[str]) -> Dict[str, int]:
    """The numbers of these modes; a TargetError if the board does not have one."""
    conf = nvidia_tools.mode_names(jetson.text_of(root / "etc/nvpmodel.conf"))
    known = {name: number for number, name in conf.items()}
    for name in names:
        if name not in known:
            has = (
                f"It has {', '.join(known)}."
                if known
                else "It has no /etc/nvpmodel.conf: omit --power-modes."
            )
            raise TargetError(f"This board has no power mode {name!r}.", meant(name, known, has))
    return {name: known[name] for name in names}


@contextlib.contextmanager
def power_mode_kept(root: Path, before: Optional[int] = None) -> Iterator[Callable[[int], None]]:
    """Yields a function that sets a mode by its number; the mode of before is set when the block ends.

    A process of its own sets it back, so that it does where this one is killed. `before` is the mode to set
    back after a reboot, when it is not the present one.

    Raises:
        TargetError: a mode cannot be set, or the mode of before is not known.
    """
    now = _mode(root)
    back = now if before is None else before
    if back is None:
        raise TargetError(
            "The power mode of this board is not known, so it could not be set back.",
            "Check that this prints it: nvpmodel -q",
        )
    command = ["sh", "-c", _GUARD, "sh", *_command(root, back)]
    null = subprocess.DEVNULL
    guard = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=null, stderr=null, cwd="/", start_new_session=True
    )
    try:
        yield lambda number: _set(root, number)
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.wait(_SET_S)
        if _mode(root) != back:
            raise TargetError(f"The power mode could not be set back to {back}.", f"sudo nvpmodel -m {back}")


def _set(root: Path, number: int) -> None:
    command = _command(root, number)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SET_S, check=False
        )
        words = (done.stderr or done.stdout).strip().splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        words = [str(error)]
    if _mode(root) != number:
        why = words[-1] if words else "nvpmodel gave no reason"
        raise TargetError(
            f"The power mode {number} could not be set: {why}.",
            "Run it as root, or allow this user nvpmodel without a password (visudo). A mode that needs a "
            "reboot cannot be set here.",
        )


def _mode(root: Path) -> Optional[int]:
    found = jetson.read_state(root, tools=True).power_mode
    return None if found is None else found.id


def _command(root: Path, number: int) -> List[str]:
    return [
        *([] if os.geteuid() == 0 else ["sudo", "-n"]),
        str(root / "usr/sbin/nvpmodel"),
        "-m",
        str(number),
    ]
