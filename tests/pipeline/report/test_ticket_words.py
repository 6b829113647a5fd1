from __future__ import annotations

from typing import cast

import pytest

from benchmarks.tickets.tickets import side
from deadweight.pipeline.report.schema import Control, Row
from deadweight.pipeline.report.units import ScoreScale
from deadweight.pipeline.report.words import control_sentences, label
from deadweight.pipeline.runs.seeds import paired


@pytest.mark.parametrize(
    ("differences", "begins"),
    [
        ([0.9, 1.0, 1.1, 1.0, 0.8], "For tickets"),
        ([-0.9, -1.0, -1.1, -1.0, -0.8], "Against tickets"),
        ([0.3, -0.2, 0.1, -0.4, 0.2], 'For "rethinking": new initial values did as well within 0.5 points'),
        ([3.0, -2.0, 1.0, -4.0, 2.0], "Undecided: 5 seeds cannot separate"),
    ],
)
def test_the_side_is_the_one_that_the_interval_is_on(differences: list[float], begins: str) -> None:
    sentence = side(paired(differences))
    assert sentence.startswith(begins)
    assert "5 seeds" in sentence
    assert " to " in sentence


def test_controls_of_a_ticket_are_compared_with_the_ticket() -> None:
    names = ("ticket_reinitialised", "ticket_random", "ticket_tuned_on")
    empty = dict.fromkeys(("parameters", "macs", "file_bytes", "latency_s", "memory_bytes", "speedup"))
    rows = [
        cast(Row, {"name": name, "score": score, **empty})
        for name, score in (("original", 0.9), ("ticket", 0.89), ("int8", 0.5))
    ]
    controls = [cast(Control, {"name": name, "score": 0.888, **empty}) for name in names]
    scale = ScoreScale("accuracy", higher_is_better=True, share=True)
    words = control_sentences(rows, controls, scale, n=10_000)
    assert [label(name) for name in names] == [
        "Ticket, new initial weights",
        "Random ticket",
        "Tuned on, not rewound",
    ]
    assert words[0].startswith("The ticket with new initial weights did as well as the ticket network")
    assert all("89.00" in sentence and "no evidence" in sentence for sentence in words)
