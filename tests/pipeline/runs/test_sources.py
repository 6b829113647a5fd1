from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from deadweight.pipeline.runs import sources
from deadweight.pipeline.stage import make_stage, named_files, stage_class


def test_an_edit_of_an_imported_neighbour_changes_the_hash(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f():\n    import neighbour_of_mine\n")
    (tmp_path / "neighbour_of_mine.py").write_text("import numpy\nX = 1\n")
    before = sources.source_hash(tmp_path / "mine.py")
    (tmp_path / "neighbour_of_mine.py").write_text("import numpy\nX = 2\n")
    assert sources.source_hash(tmp_path / "mine.py") != before


def test_a_neighbour_in_a_package_is_found(tmp_path: Path) -> None:
    package = tmp_path / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "block.py").write_text("from . import norm")
    (package / "norm.py").write_text("")
    (tmp_path / "mine.py").write_text("from nets.block import Block")
    names = {path.name for path in sources.source_files(tmp_path / "mine.py")}
    assert names == {"mine.py", "__init__.py", "block.py", "norm.py"}


def test_an_edit_elsewhere_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import json")
    (tmp_path / "other.py").write_text("")
    before = sources.source_hash(tmp_path / "mine.py")
    (tmp_path / "other.py").write_text("X = 1")
    assert sources.source_hash(tmp_path / "mine.py") == before


def test_installed_packages_are_left_to_their_versions(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch, numpy as np\nfrom torch import nn")
    assert {path.name for path in sources.source_files(tmp_path / "mine.py")} == {"mine.py"}


def test_our_own_stages_are_followed_across_the_floors() -> None:
    root = Path(sources.__file__).resolve().parents[2]
    files = sources.source_files(root / "pipeline" / "stages" / "quantize.py")
    assert root / "export" / "quantization" / "to_qdq.py" in files
    assert root / "targets" / "errors.py" in files
    assert root / "pipeline" / "report" / "page.py" not in files


def own_files(stage: str) -> set[str]:
    """Our own files in the cache key of one of our stages, by name."""
    return {path.name for path in sources.source_files(Path(inspect.getfile(stage_class(stage))))}


def test_what_only_a_type_checker_imports_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import for_types\nelse:\n    import for_work\n"
    )
    (tmp_path / "for_types.py").write_text("")
    (tmp_path / "for_work.py").write_text("")
    names = {path.name for path in sources.source_files(tmp_path / "mine.py")}
    assert names == {"mine.py", "for_work.py"}


def test_an_edit_of_the_tracers_rules_trains_no_network_anew_and_prunes_anew() -> None:
    assert len(own_files("train")) <= 21
    assert len(own_files("load")) <= 16
    for stage in ("train", "load", "finetune", "export", "quantize", "evaluate"):
        assert "rules.py" not in own_files(stage), stage
    for stage in ("prune", "statistics", "iterative", "controls"):
        assert "rules.py" in own_files(stage), stage


@pytest.mark.parametrize("stage", ["train", "finetune"])
def test_what_several_processes_run_is_named_as_code(stage: str) -> None:
    made = stage_class(stage)
    assert named_files(made(), "code") == []
    (worker,) = named_files(make_stage(stage, {"processes": 2}, "here"), "code")
    assert {path.name for path in sources.source_files(worker)} >= {"worker.py", "rules.py"}


def test_the_same_files_in_another_folder_have_the_same_hash(tmp_path: Path) -> None:
    for folder in ("a", "m", "z"):
        (tmp_path / folder).mkdir()
    (tmp_path / "m" / "library.py").write_text("LIMIT = 1\n")
    for folder in ("a", "z"):  # before and after the other one
        (tmp_path / folder / "mine.py").write_text("import math\n")
    first, last = (
        sources.source_hash(tmp_path / folder / "mine.py", tmp_path / "m" / "library.py")
        for folder in ("a", "z")
    )
    assert first == last
