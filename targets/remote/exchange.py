"""One exchange with an agent: a process that is fed, followed, and read to its end.

The three streams are served at once, since any of them may fill up while another is waited for.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import threading
from typing import Any, Dict, Iterable, Mapping, Optional, Sequence, Tuple

from ..errors import TargetError
from ..progress import Progress
from .agent_options import PROGRESS, PROTOCOL
from .ssh_errors import error_of


def spoken(
    command: Sequence[str],
    fed: Iterable[bytes],
    progress: Optional[Progress],
    environment: Optional[Mapping[str, str]] = None,
) -> Tuple[int, bytes, str]:
    """Runs a command, feeds it, follows its progress; its exit code, its output and what else it said."""
    heard = io.StringIO()
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environment is None else dict(environment),
        )
    except OSError as error:
        raise TargetError(
            f"{command[0]} does not run here: {error.strerror}.", "sudo apt install openssh-client"
        ) from error

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            text = line.decode("utf-8", "replace")
            words = text.split(None, 3)
            if words[:1] == [PROGRESS] and len(words) == 4:
                if progress is not None:
                    progress(int(words[1]), int(words[2]), words[3].strip())
            else:
                heard.write(text)

    def feed() -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its exit code and words tell why
            for block in fed:
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
    """The agent's result. A shell's greeting may come before it."""
    for line in reversed(out.splitlines()):
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict) and "agent" in told:
            if "error" in told:
                raise error_of(told["error"], name)
            if told["agent"].get("protocol") != PROTOCOL:
                raise TargetError(
                    f"The agent on {name} is of another version ({told['agent'].get('version')}).",
                    "Use the same version of deadweight on both sides.",
                )
            return dict(told["result"])
    last = heard.strip().splitlines()[-1:] or ["it said nothing"]
    raise TargetError(
        f"The agent on {name} gave no answer: {last[0]}",
        "If it was killed, the board may have run out of memory. Else use the same version on both sides.",
    )
