from __future__ import annotations

from pathlib import Path

from deadweight.pipeline import sources


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
    root = Path(sources.__file__).resolve().parents[1]
    files = sources.source_files(root / "pipeline" / "quantize.py")
    assert root / "export" / "to_qdq.py" in files
    assert root / "targets" / "errors.py" in files
    assert root / "pipeline" / "report.py" not in files
