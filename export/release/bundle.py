"""The writer of a bundle: a directory for a board, with every file's hash in a manifest that can be signed.

    bundle/
      manifest.json            name, target, board, release, expiry, and each file's SHA-256 and size
      manifest.json.sig        by `ssh-keygen -Y sign`
      model.onnx               the network; an engine beside it only if one was given
      golden/inputs.npz        inputs, and the network's outputs on the machine that made the bundle,
      golden/outputs.npz       for the golden test on the board
      report.json, report.html, recipe, measurements, licences

The board decides what it loads, by `targets/release/trust.py`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import date, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...targets import __version__
from ...targets.artifact import read_json, sha256_of, write_json
from ...targets.errors import ArtifactError, RefusedError
from ...targets.machine.child import child, patience_s
from ...targets.plain import plain
from ...targets.release.manifest import (
    LARGEST_RELEASE,
    MANIFEST,
    SIGNATURE,
    Board,
    Entry,
    Golden,
    Manifest,
    check_name,
)
from ...targets.release.trust import NAMESPACE
from ...targets.runtimes.open import open_session
from ...targets.runtimes.session import random_inputs
from ...targets.target import Target
from ..onnx_graph.external_data import copy_as_one

_GOLDEN_SAMPLES = 4
_REPORTS = ("report.json", "report.html")
_WRITTEN = datetime(2026, 11, 30, tzinfo=timezone.utc)  # the day of this version


def bundle(
    run: Path,
    place: Path,
    *,
    target: Target,
    network: str | None = None,
    even_so: bool = False,
    engine: Path | None = None,
    extras: Sequence[Path] = (),
    key: Path | None = None,
    release: int | None = None,
    expires: str | None = None,
    tolerance: float | None = None,
) -> Path:
    """Makes a bundle of the network that a run's report says to ship, or of the given one.

    Args:
        run: a run's directory, or an ONNX file.
        even_so: whether a network that breaks a budget of its run is taken too.
        target: the board; its TensorRT and compute capability are written into the manifest.
        engine: a plan built on such a board; it loads only with a signature.
        extras: licences, the recipe, measurements.
        key: an SSH key, private, or public with the private one in an agent; without it nothing is signed.
        release: its number, which must rise, since a board refuses one below the highest it had; by default
            the current time, as 20261123021500.
        expires: the last day on which a board installs it, as 2027-06-30 (UTC); by default it never expires.
        tolerance: the allowed deviation of a board's golden outputs, as a share of the largest; by default
            0.01, and 0.05 for TensorRT.

    Raises:
        ArtifactError: a file is missing, a number or day is invalid, or `place` is not a bundle.
        RefusedError: the network breaks a budget of its run.
        ModelError: the network does not run here, so there are no golden outputs.
    """
    now = _plausible(datetime.now(timezone.utc))
    dated = {
        "release": _release(release, now),
        "made_at": now.isoformat(timespec="seconds"),
        "expires": _expiry(expires, now),
    }
    allowed = target.runtime.tolerance if tolerance is None else tolerance
    if not 0 <= allowed <= 1:
        raise ArtifactError(f"The tolerance {allowed} is not from 0 to 1.", "Use a share, such as 0.01.")
    model, name, reports = _select(run, network, even_so=even_so)
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    if place.exists() and not (place / MANIFEST).is_file():
        raise ArtifactError(f"{place} already exists and is not a bundle.", "Choose another path with --out.")
    try:
        part.mkdir(parents=True)
        copy_as_one(model, part / "model.onnx")  # a board opens only one file, whose bytes it checked
        for path in (*reports, *extras, *([engine] if engine else [])):
            if not path.is_file():
                raise ArtifactError(f"{path} does not exist.", "Check the path.")
            if (part / path.name).exists():
                raise ArtifactError(f"Two files of the bundle are named {path.name}.", "Rename one of them.")
            shutil.copyfile(path, part / check_name(path.name))
        with child() as process:
            job, cure = partial(_write_golden, part / "model.onnx", part / "golden"), "It may never end."
            process.run(job, what=model.name, within_s=patience_s(model), cure=cure)
        _write_manifest(part, name, target, engine, dated=dated, tolerance=allowed)
        if key is not None:
            _sign(part / MANIFEST, key)
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
    except OSError as error:
        raise ArtifactError(
            f"The bundle cannot be written to {place}: {error.strerror or error}.",
            "Free some space, or choose another path with --out.",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def _select(run: Path, network: str | None, *, even_so: bool) -> tuple[Path, str, list[Path]]:
    """The network's file, the bundle's name, and the reports."""
    if run.suffix == ".onnx":
        if not run.is_file():
            raise ArtifactError(f"{run} does not exist.", "Check the path.")
        return run, _plain(run.stem), []
    if not (run / "report.json").is_file():
        raise ArtifactError(
            f"{run} is neither a finished run nor an ONNX file: {run / 'report.json'} does not exist.",
            "Give the folder of a run that ended (deadweight run RECIPE --out DIR), or MODEL.onnx.",
        )
    report = read_json(run / "report.json")
    shipped = [row["name"] for row in report["rows"] if (run / "networks" / f"{row['name']}.onnx").is_file()]
    if not shipped or network not in (None, *shipped):
        cure = f"It has {', '.join(shipped)}." if shipped else "Run it with the stage export."
        wanted = f"a network named '{network}'" if network else "an exported network"
        raise ArtifactError(f"{run} does not have {wanted}.", cure)
    ship = report.get("ship", {}).get("network")
    chosen = network or (ship if ship in shipped else shipped[-1])
    broken = next(row.get("broken", []) for row in report["rows"] if row["name"] == chosen)
    if broken and not even_so:
        others = f" The run says to ship {ship}." if ship not in (None, chosen) else ""
        raise RefusedError(
            f"The network {chosen} breaks a budget of its run: {'; '.join(broken)}.{others}",
            "Ship another network (--network), change the budgets and run again, or give --even-so.",
        )
    reports = [run / name for name in _REPORTS if (run / name).is_file()]
    return run / "networks" / f"{chosen}.onnx", _plain(f"{report.get('name', run.name)}-{chosen}"), reports


def _write_golden(model: Path, folder: Path) -> None:
    with closing(open_session(model)) as session:
        inputs = random_inputs(session.inputs, batch=_GOLDEN_SAMPLES)
        outputs = session.run(inputs)
    folder.mkdir()
    np.savez(folder / "inputs.npz", **inputs)  # type: ignore[arg-type]  # names are the model's
    np.savez(folder / "outputs.npz", **outputs)  # type: ignore[arg-type]


def _release(given: int | None, now: datetime) -> int:
    release = int(now.strftime("%Y%m%d%H%M%S")) if given is None else given
    if not 1 <= release <= LARGEST_RELEASE:
        raise ArtifactError(f"{release} is not a release number.", "Give an integer, 1 or more, that rises.")
    return release


def _plausible(now: datetime) -> datetime:
    """The clock's time; refused far ahead, since boards take no number below the one that it makes."""
    if now > _WRITTEN + timedelta(days=5 * 365):
        raise ArtifactError(
            f"The clock of this machine says {now:%Y-%m-%d}, more than five years after this version of "
            f"deadweight ({_WRITTEN:%Y-%m-%d}).",
            "Set the clock (timedatectl set-ntp true), or install a newer version.",
        )
    return now


def _expiry(given: str | None, now: datetime) -> str | None:
    """The last second of a day."""
    if given is None:
        return None
    try:
        day = date.fromisoformat(given)
    except ValueError as error:
        raise ArtifactError(f"{given!r} is not a day.", "Give it as 2027-06-30.") from error
    end = datetime(day.year, day.month, day.day, tzinfo=timezone.utc) + timedelta(hours=24, seconds=-1)
    if end < now:
        raise ArtifactError(f"A bundle that expires on {given} has expired already.", "Give a later day.")
    return end.isoformat(timespec="seconds")


def _write_manifest(
    part: Path, name: str, target: Target, engine: Path | None, *, dated: Mapping[str, Any], tolerance: float
) -> None:
    files = sorted(path for path in part.rglob("*") if path.is_file())
    manifest = Manifest(
        name=name,
        made_by=f"deadweight {__version__}",
        target=target.name,
        board=_board(target, engine),
        model=engine.name if engine else "model.onnx",
        **dated,
        golden=Golden("golden/inputs.npz", "golden/outputs.npz", tolerance),
        files={
            path.relative_to(part).as_posix(): Entry(sha256_of(path), path.stat().st_size) for path in files
        },
    )
    write_json(part / MANIFEST, plain(manifest))


def _board(target: Target, engine: Path | None) -> Board:
    """The requirements for a board: from the target's facts, and from an engine's record."""
    if not target.runtime.builds:
        if engine is not None:
            raise ArtifactError(
                f"{target.name} runs {target.runtime}, not engines.", "Give the board with --target."
            )
        return Board(None, None)
    facts = {name: target.fact(name) for name in ("compute_capability", "tensorrt")}
    board = {name: None if fact is None else str(fact.value) for name, fact in facts.items()}
    record = Path(f"{engine}.json") if engine else None
    endings = target.runtime.suffixes
    if engine is not None and engine.suffix not in endings:
        raise ArtifactError(
            f"{engine} does not have an engine's suffix.", f"Engines end in {' or '.join(endings)}."
        )
    if record is not None and record.is_file():
        board["tensorrt"] = str(read_json(record)["tensorrt"]["version"])
    return Board(**board)


def _sign(manifest: Path, key: Path) -> None:
    if not key.exists():
        raise ArtifactError(f"There is no key at {key}.", "Make one: ssh-keygen -t ed25519 -f release_key")
    command = ["ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(manifest)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ArtifactError("ssh-keygen is not installed here.", "Install OpenSSH's client.") from error
    if done.returncode or not (manifest.parent / SIGNATURE).is_file():
        words = done.stderr.strip().splitlines() or ["ssh-keygen refused"]
        raise ArtifactError(
            f"{key} cannot sign: {words[-1]}",
            "Give the private key, or its public one with the private one in ssh-agent.",
        )


def _plain(name: str) -> str:
    return (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "bundle")[:64]
