"""A board's answers are data of known types: whatever else it says is an error that names the board."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.measurements import timed

from deadweight.targets import __version__
from deadweight.targets.errors import TargetError
from deadweight.targets.remote.board import compare_on, doctor_on
from deadweight.targets.remote.exchange import spoken
from deadweight.targets.remote.on_board import Ready, facts_of
from deadweight.targets.remote.ssh import Transport, connected
from deadweight.targets.runtimes.runtime import runtime_named
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol

HELLO = "deadweight_python=/usr/bin/python3\ndeadweight_home=/home/u\ndeadweight_agent=here\n"
FACTS: dict[str, Any] = {
    "board": dict.fromkeys(("soc", "jetpack", "l4t", "tensorrt", "cuda", "compute_capability"))
    | {"model": "x"},
    "runtimes": [{"name": "onnxruntime", "version": "1.0"}],
    **dict.fromkeys(("sms", "power_mode", "base")),
    "memory_bytes": 8,
    "dla_cores": 0,
    "clocks": {},
    "free_bytes": 8,
}
CHECK = {"name": "a", "found": "b", "works": True, "needed_for": "c"}
Says = Callable[..., None]


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """A program `ssh` that greets, and prints this answer to every command."""
    program = tmp_path / "ssh"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *deadweight_agent*) cat "$0.hello" ;; *) cat "$0.answer" ;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def say(result: Any, hello: str = HELLO) -> None:
        (tmp_path / "ssh.hello").write_text(hello)
        message = {"agent": {"version": __version__, "protocol": 1}, "exit_code": 0, "result": result}
        text = result if isinstance(result, str) else json.dumps(message)
        (tmp_path / "ssh.answer").write_text(text + "\n")

    return say


def asked(ask: Callable[[Transport], Any]) -> Any:
    with connected("user@board") as board:
        return ask(board)


def test_facts_and_checks_are_taken_as_they_are(says: Says) -> None:
    says(FACTS)
    assert asked(facts_of) == FACTS
    says({"checks": [CHECK], "next": "all works"})
    assert asked(doctor_on)[1] == "all works"


@pytest.mark.parametrize(
    "wrong",
    [
        *[{**FACTS, key: value} for key, value in (("runtimes", [{"name": 7}]), ("clocks", {"gpu": 3}))],
        *[
            {key: value for key, value in FACTS.items() if key != missing}
            for missing in ("board", "free_bytes")
        ],
        *[{**FACTS, "board": {**FACTS["board"], "model": None}}, {**FACTS, "free_bytes": "8"}, [], 7],
        *[
            '{"agent": 3}',
            '{"agent": {"protocol": 1}, "error": "x"}',
            '{"agent": {"protocol": 1}}',
            "[" * 9999,
        ],
    ],
    ids=str,
)
def test_facts_of_another_form_are_an_error_that_names_the_board(says: Says, wrong: Any) -> None:
    says(wrong)
    with pytest.raises(TargetError, match="user@board"):
        asked(facts_of)


@pytest.mark.parametrize(
    "wrong", [{}, {"checks": [{**CHECK, "works": "yes"}]}, {"checks": [{"x": 1}]}, {"checks": 3}]
)
def test_checks_of_another_form_are_an_error_that_names_the_board(says: Says, wrong: Any) -> None:
    says(wrong)
    with pytest.raises(TargetError, match="user@board"):
        asked(doctor_on)


def test_a_greeting_that_names_no_place_for_the_agent_is_an_error(says: Says) -> None:
    says(FACTS, hello="deadweight_python=/usr/bin/python3\n")
    with pytest.raises(TargetError, match="user@board"):
        asked(facts_of)
    says(FACTS, hello=HELLO.replace("/home/u", "/home/\0"))
    with pytest.raises(TargetError, match="null byte"):
        asked(facts_of)


@pytest.mark.parametrize("missing", ["measurements", "judgement", ""])
def test_times_are_taken_whole_or_not_at_all(says: Says, missing: str) -> None:
    one = timed(np.random.default_rng(0).uniform(1e-3, 2e-3, (12, 20)))
    times = {"baseline": one.to_json(), "candidate": one.to_json()}
    answer = {"void": [], "measurements": times, "judgement": judge(one, one).to_json()}
    answer.pop(missing, None)
    says(answer)
    ready = Ready({"baseline": "a", "candidate": "b"}, runtime_named("onnxruntime"))
    if missing:
        with pytest.raises(TargetError, match=f"user@board answered .* there is no '{missing}'"):
            asked(lambda board: compare_on(board, ready, protocol=Protocol(), margin=0.02))
    else:
        _, judgement = asked(lambda board: compare_on(board, ready, protocol=Protocol(), margin=0.02))
        assert judgement == judge(one, one)


def test_a_line_that_only_looks_like_progress_is_text() -> None:
    lines = "deadweight-progress 1 many timing\\ndeadweight-progress 1 2 timing"
    seen: list[tuple[int, int, str]] = []
    _, _, heard = spoken(["sh", "-c", f"printf '{lines}\\n' >&2"], [], lambda *each: seen.append(each))
    assert (seen, heard) == ([(1, 2, "timing")], "deadweight-progress 1 many timing\n")
