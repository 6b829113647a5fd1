"""What a run leaves for its user."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.digits import Digits

from deadweight.export.onnx_graph import external_data
from deadweight.export.onnx_graph.graph import load
from deadweight.pipeline.runs.run import deliver
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.target import load_target


def exported(directory: Path) -> Work:
    torch.manual_seed(0)
    work = Work(Digits(), load_target("x86-cpu"), directory, networks=NetworkFiles())
    return Export()(work.with_model("original", work.workload.build_model()))


def test_networks_are_delivered_with_the_weights_beside_them_and_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = exported(tmp_path / "plain")
    monkeypatch.setattr(external_data, "INLINE_BYTES", 10_000)  # as if one message held 10 KB
    deliver(exported(tmp_path / "large"), tmp_path)
    delivered = tmp_path / "networks" / "original.onnx"
    assert len(list(delivered.parent.glob("*.weights"))) == 1
    assert load(delivered).graph == load(plain.latest("onnx").path("onnx")).graph
    deliver(plain, tmp_path)
    assert list(delivered.parent.iterdir()) == [delivered]
