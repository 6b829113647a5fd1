"""The agent as one file, and one exchange with it: input, progress, output, and the errors of both sides.

The file is a zipapp: the sources of this floor, which Python runs without an install. It is sent with the
first call and stored on the board by its hash; equal sources give equal bytes. The TOML files of boards are
left out, since a target is sent as JSON.

All three streams are served at once, since each can fill up while another is read. The first command is plain
sh, sent before the agent exists: it finds a Python and the agent. ssh exits with 255 when ssh itself failed;
only its message says how.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shlex
import subprocess
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, ContextManager, Dict, Iterable, Mapping, Optional, Sequence, Tuple, Type

from .. import __version__
from ..artifact import json_of
from ..board_file import read_toml
from ..errors import (
    MISFITS,
    ArtifactError,
    DeadweightError,
    MeasurementError,
    ModelError,
    RefusedError,
    TargetError,
    reported,
)
from ..plain import from_plain
from ..progress import Progress, silent
from .agent_options import PROGRESS, PROTOCOL, SAME

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
"""Finds a Python and the agent of this hash, under any login shell."""

_REASONS = Path(__file__).with_name("ssh_reasons.toml")


def spoken(
    command: Sequence[str],
    stdin: Iterable[bytes],
    progress: Progress = silent,
    environment: Optional[Mapping[str, str]] = None,
) -> Tuple[int, bytes, str]:
    """Runs a command with input, reports its progress; returns exit code, output and other stderr text."""
    heard = io.StringIO()
    missing = f"{command[0]} does not run here"
    with reported(TargetError, missing, "sudo apt install openssh-client", OSError, ValueError):
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environment is None else dict(environment),
        )

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            text = line.decode("utf-8", "replace")
            words = text.split(None, 3)
            if len(words) == 4 and words[0] == PROGRESS and words[1].isdecimal() and words[2].isdecimal():
                progress(int(words[1]), int(words[2]), words[3].strip())
            else:
                heard.write(text)

    def feed() -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # exit code and stderr give the reason
            for block in stdin:
                process.stdin.write(block)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()

    threads = [threading.Thread(target=act, daemon=True) for act in (listen, feed)]
    try:
        for thread in threads:
            thread.start()
        assert process.stdout is not None
        out = process.stdout.read()
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    for thread in threads:
        thread.join(10)
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()
    return code, out, heard.getvalue()


def answer(out: bytes, heard: str, name: str) -> Dict[str, Any]:
    """Reads the agent's result, which may follow a shell's greeting."""
    for line in reversed(out.splitlines()):
        try:
            message = json_of(line)
        except ValueError:
            continue
        if isinstance(message, dict) and "agent" in message:
            with reading(name):
                if "error" in message:
                    raise error_of(message["error"], name)
                if message["agent"].get("protocol") != PROTOCOL:
                    raise TargetError(
                        f"The agent on {name} has another version ({message['agent'].get('version')}).", SAME
                    )
                return dict(message["result"])
    last = heard.strip().splitlines()[-1:] or ["it printed nothing"]
    raise TargetError(
        f"The agent on {name} gave no answer: {last[0]}",
        "If it was killed, the board may have run out of memory. If not, use the same version on both sides.",
    )


def reading(name: str) -> ContextManager[None]:
    """Makes it an error that names the board where its answer has another form than it should."""
    return reported(TargetError, f"{name} answered something that this version cannot read", SAME, *MISFITS)


def typed(kind: Any, value: Any, name: str) -> Any:
    """A part of a board's answer, as this type."""
    return from_plain(kind, value, f"The answer of {name}", error=TargetError, cure=SAME)


def connection_error(name: str, heard: str, doing: str, *, reached: bool = False) -> TargetError:
    """The error of a connection, from ssh's message. `reached`: ssh worked, but its command failed."""
    host = name.rpartition("@")[2]
    words = heard.strip().splitlines()[-1] if heard.strip() else "no reason was given"
    for known in read_toml(_REASONS, TargetError)["reason"]:
        if known["sign"] in heard:
            what, cure = (known[part].format(name=name, host=host, words=words) for part in ("what", "cure"))
            return TargetError(what, cure)
    if reached:
        return TargetError(
            f"{name} was reached, but {doing} failed: {words}.", f"Try a shell there: ssh {name} sh -c true"
        )
    return TargetError(
        f"The connection to {name} broke while {doing}: {words}",
        "Run the same command again: received data is stored, and a partial file is never used.",
    )


def keep_command(sha256: str) -> str:
    """A shell command that stores the agent from stdin, if it is complete."""
    script = (
        f'umask 077; d={_HOME}; mkdir -p "$d" && cat > "$d/.agent.$$" && '
        f'[ "$(sha256sum < "$d/.agent.$$" | cut -c1-64)" = {sha256} ] && '
        f'mv "$d/.agent.$$" "$d/agent-{sha256}.pyz" || {{ rm -f "$d/.agent.$$"; exit 1; }}'
    )
    return "sh -c " + shlex.quote(script)


_KINDS: Mapping[str, Type[DeadweightError]] = {
    kind.__name__: kind for kind in (ArtifactError, MeasurementError, ModelError, RefusedError, TargetError)
}


def error_of(error: Dict[str, str], name: str) -> DeadweightError:
    """The agent's error, of the same class, with the board's name."""
    kind = _KINDS.get(str(error.get("kind")), TargetError)
    where = "" if name == "local" else f"On {name}: "
    return kind(f"{where}{error.get('what', 'it failed.')}", str(error.get("cure", "Try again.")))


_SOURCES = Path(__file__).parents[1]
_EPOCH = (1980, 1, 1, 0, 0, 0)

# Says why an old Python cannot run it, so its syntax is that of Python 3.5.
_MAIN = """\
import json, sys
if sys.version_info < (3, 8):
    found = "%d.%d" % sys.version_info[:2]
    error = {"kind": "TargetError", "what": "The agent needs Python 3.8, but this one is %s." % found,
             "cure": "Install a newer one beside it: sudo apt install python3.8"}
    print(json.dumps({"agent": {"version": "VERSION", "protocol": 0}, "error": error}))
    sys.exit(2)
from deadweight.targets.agent import main
sys.exit(main())
"""


@lru_cache(maxsize=1)
def agent_bytes() -> bytes:
    """The zip file, some 260 KB. Its sources are Python 3.8; `python3 FILE doctor` runs it."""
    import io
    import zipfile  # imported here, so that the agent starts fast

    files = {"__main__.py": _MAIN.replace("VERSION", __version__).encode(), "deadweight/__init__.py": b""}
    for path in sorted(_SOURCES.rglob("*.py")):
        files[f"deadweight/targets/{path.relative_to(_SOURCES).as_posix()}"] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def agent_sha256() -> str:
    """The hash under which a board stores the agent."""
    return hashlib.sha256(agent_bytes()).hexdigest()
