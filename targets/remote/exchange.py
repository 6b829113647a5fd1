"""One exchange with an agent: a process with input, progress lines and output.

All three streams are served at once, since each can fill up while another is read.
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
    stdin: Iterable[bytes],
    progress: Optional[Progress],
    environment: Optional[Mapping[str, str]] = None,
) -> Tuple[int, bytes, str]:
    """Runs a command with input, reports its progress; returns exit code, output and other stderr text."""
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
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict) and "agent" in message:
            if "error" in message:
                raise error_of(message["error"], name)
            if message["agent"].get("protocol") != PROTOCOL:
                raise TargetError(
                    f"The agent on {name} has another version ({message['agent'].get('version')}).",
                    "Use the same version of deadweight on both sides.",
                )
            return dict(message["result"])
    last = heard.strip().splitlines()[-1:] or ["it printed nothing"]
    raise TargetError(
        f"The agent on {name} gave no answer: {last[0]}",
        "If it was killed, the board may have run out of memory. If not, use the same version on both sides.",
    )
