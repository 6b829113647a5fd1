"""The YOLO example, whole: halved, trained, validated, run and exported by Ultralytics as it is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "yolo" / "prune_yolo.py"


@pytest.mark.slow
def test_a_yolo11n_is_halved_trained_validated_run_and_exported_from_a_fresh_install(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics", reason="Ultralytics is not installed; it is AGPL and the user's own")
    quiet = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path / "runs")]
    done = subprocess.run(command, env=os.environ | quiet, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"parameters: (\d+) -> (\d+)", done.stdout)
    assert found is not None, done.stdout
    before, after = map(int, found.groups())
    assert 0.25 * before < after < 0.4 * before
    assert "mAP50 after 2 epochs" in done.stdout

    import onnxruntime
    import torch
    from ultralytics import YOLO  # pyright: ignore[reportMissingImports]

    from deadweight import plan_of

    weights = tmp_path / "runs" / "train" / "weights"
    network = YOLO(weights / "best.pt").model
    plan = plan_of(network)
    assert plan is not None
    assert plan.form == "module"
    assert sum(one.numel() for one in network.parameters()) == after
    pruned = dict(YOLO(tmp_path / "runs" / "pruned.pt").model.named_parameters())
    trained = [name for name, one in network.named_parameters() if not torch.equal(one, pruned[name])]
    assert len(trained) > 0.9 * len(pruned)
    session = onnxruntime.InferenceSession(weights / "best.onnx", providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    (written,) = session.run(None, {session.get_inputs()[0].name: image})
    with torch.no_grad():
        expected = network.float().eval()(torch.from_numpy(image))[0].numpy()
    assert np.abs(written - expected).max() < 1e-3 * np.abs(expected).max()
