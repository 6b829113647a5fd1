"""What a re-tuned release takes over the air: as a patch, as a whole update, and by other tools.

    python benchmarks/updates/delta.py [--networks mlp cnn] [--jobs 1]
    python benchmarks/updates/delta.py --table

Release 1 is the trained network in INT8. Release 2 is the same network trained for one epoch more, at the
learning rate it was trained with (0.001) or at a part of it, exported and calibrated anew. Both are signed
bundles with model, golden samples and manifest. Every size is that of a file which gives back the new bundle
byte for byte, and ours are applied; those of the other tools (xz and zstd whole; bsdiff4 and zstd
--patch-from as patches; where they are installed) give back the model alone.
"""

from __future__ import annotations

import dataclasses
import lzma
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import SEEDS, Cell, command, found, markdown, missing_words, spread
from benchmarks.common.record import Row
from deadweight.export.release.bundle import bundle
from deadweight.export.release.delta import delta
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.quantize import Quantize
from deadweight.pipeline.training.predict import score_of, session_predict
from deadweight.pipeline.work import Work
from deadweight.targets.release.install import install
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.target import load_target

RECORD = Path("runs") / "delta.jsonl"
RATES = (1e-3, 3e-4, 1e-4, 3e-5)
NETWORKS = ("mlp", "cnn")


def cells(network: str) -> list[Cell]:
    return [{"network": network, "rate": rate, "seed": seed} for seed in SEEDS for rate in RATES]


def measure(cell: Cell, work: Work) -> Row:
    """Both releases, and what the second takes."""
    place = work.directory
    old = _int8(_inside(work, place / "old"))
    tune = Finetune(epochs=1, learning_rate=cell["rate"], keep="last")
    new = _int8(_inside(tune(_inside(work, place / "tune")), place / "new"))
    row: Row = {"scores": [_score(work, model) for model in (old, new)], **_changed(old, new)}
    key, root = _key(place)
    releases = []
    for number, model in enumerate((old, new), start=1):
        shutil.copyfile(model, place / "network.onnx")
        made = bundle(
            place / "network.onnx",
            place / f"release{number}",
            target=load_target("x86-cpu"),
            key=key,
            release=number,
        )
        releases.append(made)
    patch, whole = delta(releases[0], releases[1], place / "patch"), delta(None, releases[1], place / "whole")
    for source in (releases[0], patch.path):  # it is really applied, tried and put in use
        assert install(source, place / "board", root=root)["golden"]["holds"]
    assert (place / "board/network/current/model.onnx").read_bytes() == new.read_bytes()
    row["bytes"] = {
        "model": new.stat().st_size,
        "bundle": sum(path.stat().st_size for path in releases[1].rglob("*") if path.is_file()),
        "patch": patch.bytes,
        "whole": whole.bytes,
        **_others(old, new),
    }
    return row


def _inside(work: Work, place: Path) -> Work:
    place.mkdir()
    return dataclasses.replace(work, directory=place)


def _int8(work: Work) -> Path:
    done: Path = Quantize()(Export()(work)).variant("int8").path("onnx")
    return done


def _score(work: Work, model: Path) -> float:
    session = open_session(model)
    score = score_of(work.workload, session_predict(session), "validation")
    session.close()
    return round(100 * score, 3)


def _changed(old: Path, new: Path) -> Row:
    """How many weights changed, and by how much, over all INT8 tensors of the network."""
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer} for p in (old, new)
    )
    names = [name for name, value in after.items() if value.dtype == np.int8 and value.ndim > 1]
    gaps = [(after[name].astype(int) - before[name].astype(int)).ravel() for name in names]
    moved = np.concatenate(gaps)
    tensors = [bool(gap.any()) for gap in gaps]
    return {
        "weights_changed": float((moved != 0).mean()),
        "mean_change": float(np.abs(moved).mean()),
        "int8_tensors_changed": [sum(tensors), len(tensors)],
    }


def _key(place: Path) -> tuple[Path, Path]:
    """A key, and a machine that trusts it."""
    key, root = place / "key", place / "root"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    signers = root / "etc/deadweight/allowed_signers"
    signers.parent.mkdir(parents=True)
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    signers.write_text(f'bench namespaces="deadweight-bundle" {public}\n')
    return key, root


def _others(old: Path, new: Path) -> dict[str, int]:
    data = new.read_bytes()
    sizes = {"xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))}
    try:
        import bsdiff4  # type: ignore[import-not-found, import-untyped, unused-ignore]  # pyright: ignore[reportMissingImports]

        sizes["bsdiff"] = len(bsdiff4.diff(old.read_bytes(), data))
    except ImportError:
        pass
    if shutil.which("zstd"):
        with tempfile.TemporaryDirectory() as folder:
            for name, options in (("zstd", []), ("zstd_patch", [f"--patch-from={old}"])):
                out = Path(folder) / name
                line = ["zstd", "-q", "--ultra", "-22", *options, str(new), "-o", str(out)]
                subprocess.run(line, check=True)
                sizes[name] = out.stat().st_size
    return sizes


def table(rows: list[Row], network: str) -> str:
    """A line a learning rate: how much changed, and what each way of sending it takes."""
    lines = []
    for rate in RATES:
        own = found(rows, {"network": network, "rate": rate})
        if not own:
            continue
        kilobytes = partial(_over, own)
        lines.append(
            [
                f"{rate:g}",
                spread([100 * row["weights_changed"] for row in own]),
                spread([row["mean_change"] for row in own]),
                spread([row["scores"][1] - row["scores"][0] for row in own], sign=True),
                *(
                    kilobytes(name)
                    for name in ("model", "xz", "zstd", "whole", "zstd_patch", "bsdiff", "patch")
                ),
                spread([100 * row["bytes"]["patch"] / row["bytes"]["whole"] for row in own]),
                spread([100 * row["bytes"]["patch"] / row["bytes"]["bundle"] for row in own]),
            ]
        )
    head = [
        "learning rate",
        "weights changed, %",
        "mean change",
        "score, points",
        "model, kB",
        "its xz",
        "its zstd",
    ]
    head += [
        "**whole update**",
        "zstd --patch-from",
        "bsdiff",
        "**patch**",
        "% of the whole update",
        "% of the bundle",
    ]
    words = missing_words(rows, cells(network))
    return f"### {network}\n\n{markdown(head, lines)}\n\n{words}"


def _over(rows: Sequence[Row], name: str) -> str:
    sizes: list[Any] = [row["bytes"].get(name) for row in rows]
    return "not installed" if None in sizes else f"{np.mean(sizes) / 1e3:.1f}"


if __name__ == "__main__":
    assert __doc__ is not None
    command(__doc__, RECORD, NETWORKS, cells=cells, measure=measure, table=table)
