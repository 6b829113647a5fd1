from __future__ import annotations

from pathlib import Path

from support.digits import Digits

from deadweight.pipeline.runs.run import look_sentences, looks
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.artifact import write_json
from deadweight.targets.target import load_target


def scored(folder: Path, score: float) -> Work:
    write_json(folder / f"{score}.json", {"score": score})
    work = Work(Digits(), load_target("x86-cpu"), folder, networks=NetworkFiles())
    return work.with_artifact("scores_test", folder / f"{score}.json")


def test_other_scores_are_another_look_and_the_same_ones_are_not(tmp_path: Path) -> None:
    assert [looks(tmp_path, scored(tmp_path, score)) for score in (0.8, 0.8, 0.9, 0.8)] == [1, 1, 2, 2]


def test_only_a_second_look_is_worth_a_word() -> None:
    assert look_sentences(1) == []
    assert "evaluated 2 times" in look_sentences(2)[0]
