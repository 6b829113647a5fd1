import base64
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from deadweight.targets.errors import MeasurementError, ModelError, TargetError
from deadweight.targets.plain import plain
from deadweight.targets.timing.memory import _TINY, Memory, measure_memory

MakeMlp = Callable[..., Path]


def proc_with(tmp_path: Path, *names: str) -> Path:
    """A root whose /proc/self holds only these files of the real one (of a caller that reads them)."""
    folder = tmp_path / "root" / "proc" / "self"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).symlink_to(f"/proc/self/{name}")
    return tmp_path / "root"


def test_the_tiny_model_is_a_model() -> None:
    onnx.checker.check_model(onnx.load_from_string(base64.b64decode(_TINY)))


def test_a_model_costs_its_weights_and_more_while_it_is_loaded(mlp: MakeMlp) -> None:
    path = mlp(1024, 2048, 1024, 10)
    memory = measure_memory(path)
    assert memory.file_bytes == path.stat().st_size
    assert 0.95 * memory.file_bytes < memory.resident_bytes < 2 * memory.file_bytes
    assert memory.load_peak_bytes > memory.resident_bytes
    # Another session of the same file holds its own weights.
    assert 0.95 * memory.file_bytes < memory.extra_session_bytes < 1.1 * memory.resident_bytes
    assert memory.remarks == ()


def test_two_measurements_agree_to_two_percent_and_their_peaks_to_one_tensor(mlp: MakeMlp) -> None:
    path = mlp(1024, 1024, 1024, 10)
    first, second = measure_memory(path), measure_memory(path)
    assert second.resident_bytes == pytest.approx(first.resident_bytes, rel=0.02)
    assert second.extra_session_bytes == pytest.approx(first.extra_session_bytes, rel=0.02)
    assert second.load_peak_bytes == pytest.approx(first.load_peak_bytes, abs=4 * 1024 * 1024 + 300_000)


def test_half_the_width_costs_less(mlp: MakeMlp) -> None:
    wide = measure_memory(mlp(1024, 8192, 10, name="wide.onnx"))
    narrow = measure_memory(mlp(1024, 4096, 10, name="narrow.onnx"))
    assert narrow.resident_bytes < 0.6 * wide.resident_bytes
    assert narrow.load_peak_bytes < 0.6 * wide.load_peak_bytes


def test_a_larger_batch_costs_more(mlp: MakeMlp) -> None:
    path = mlp(64, 4096, 10)
    assert measure_memory(path, batch=256).resident_bytes > measure_memory(path).resident_bytes + 2e6


def test_where_the_peak_cannot_be_reset_a_remark_says_what_is_not_seen(mlp: MakeMlp, tmp_path: Path) -> None:
    path = mlp(1024, 4096, 1024, 10)
    exact = measure_memory(path)
    coarse = measure_memory(path, root=proc_with(tmp_path, "status", "smaps_rollup"))
    assert "the peak could not be reset" in coarse.remarks[0]
    assert coarse.resident_bytes == pytest.approx(exact.resident_bytes, rel=0.02)
    assert coarse.load_peak_bytes == pytest.approx(exact.load_peak_bytes, rel=0.1)


def test_where_private_pages_are_not_known_a_remark_says_so(mlp: MakeMlp, tmp_path: Path) -> None:
    path = mlp(1024, 4096, 1024, 10)
    coarse = measure_memory(path, root=proc_with(tmp_path, "status"))
    assert any("private pages are not known" in remark for remark in coarse.remarks)
    assert coarse.resident_bytes == pytest.approx(measure_memory(path).resident_bytes, rel=0.3)


def test_a_system_that_tells_nothing_is_refused(mlp: MakeMlp, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="on Linux only"):
        measure_memory(mlp(8, 4), root=proc_with(tmp_path))


def test_a_model_that_cannot_be_opened_raises_the_error_of_its_process(mlp: MakeMlp, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model at"):
        measure_memory(tmp_path / "none.onnx")
    path = mlp(64, 32)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelError, match="it is truncated") as caught:
        measure_memory(path)
    assert caught.value.cure == "Export or copy the model again."
    with pytest.raises(TargetError, match="'tensorflow' is unknown"):
        measure_memory(path, runtime="tensorflow")


def test_a_measurement_that_takes_too_long_is_given_up(mlp: MakeMlp) -> None:
    with pytest.raises(MeasurementError, match=r"did not end within 0 s"):
        measure_memory(mlp(8, 4), timeout_s=0.001)


def test_a_relative_path_is_found_by_the_fresh_process(mlp: MakeMlp, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mlp(8, 4)
    monkeypatch.chdir(path.parent)
    assert measure_memory(os.path.relpath(path)).file_bytes == path.stat().st_size


def test_a_users_module_that_is_called_like_pythons_own_is_not_imported(
    mlp: MakeMlp, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mlp(8, 4)
    monkeypatch.chdir(path.parent)
    for name in ("json", "random", "tempfile"):
        (path.parent / f"{name}.py").write_text("raise RuntimeError('this is the user's own')\n")
    assert measure_memory(path).file_bytes == path.stat().st_size


def test_memory_is_plain_json() -> None:
    assert plain(Memory(1, 2, 3, 4, ("so",))) == {
        "file_bytes": 1,
        "load_peak_bytes": 2,
        "resident_bytes": 3,
        "extra_session_bytes": 4,
        "remarks": ["so"],
    }
