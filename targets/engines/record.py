"""The record beside an engine: what it was built from, by what, for which machine, and how to build it again.

A plan only runs where it was built: on that TensorRT, that GPU architecture, often that board. TensorRT says
so after it has read the plan, in words about tags; the record says it before, with both values.
"""

from __future__ import annotations

import platform
import shlex
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Union

from ..artifact import read_json, sha256_of
from ..errors import ModelError

SCHEMA = 1
_ROOT = Path("/")
_HELD = {
    "plan": ("bytes", "sha256"),
    "tensorrt": ("flavour", "version"),
    "settings": ("dla_core", "version_compatible", "hardware_compatibility"),
    "platform": ("machine",),
}
"""What is looked up in a record before its plan is opened."""


def record_path(plan: Union[str, Path]) -> Path:
    """Where the record of a plan lies: `model.plan` has `model.plan.json`."""
    return Path(f"{plan}.json")


def log_path(plan: Union[str, Path]) -> Path:
    """Where the build's log lies: `model.plan` has `model.plan.log`."""
    return Path(f"{plan}.log")


def read_record(plan: Path) -> Optional[Dict[str, Any]]:
    """The record of a plan; None where it has none, as one that trtexec built."""
    path = record_path(plan)
    if not path.is_file():
        return None
    record = read_json(path)
    if record.get("schema") != SCHEMA or record.get("kind") != "engine":
        raise ModelError(
            f"{path} is not the record of an engine that this version reads (schema {SCHEMA}).",
            f"Build the engine again with this version, or remove {path} to open the plan without it.",
        )
    missing = [name for name in ("evidence", "rebuild") if name not in record]
    for name, keys in _HELD.items():
        table = record.get(name)
        missing += [f"{name}.{key}" for key in keys if not isinstance(table, dict) or key not in table]
    if missing:
        raise ModelError(
            f"{path} is not a whole record: it lacks {', '.join(missing)}.",
            f"Copy it again, build the engine again, or remove {path} to open the plan without it.",
        )
    return record


def check_record(
    record: Mapping[str, Any],
    plan: Path,
    *,
    flavour: str,
    version: str,
    compute_capability: Optional[str],
) -> None:
    """Compares a plan with its record, and the record with this machine.

    Raises:
        ModelError: the plan is not the recorded one, or it was built for something else than what is here.
    """
    wrong: List[str] = []
    if plan.stat().st_size != record["plan"]["bytes"]:
        raise ModelError(
            f"{plan.name} has {plan.stat().st_size} bytes; {record['plan']['bytes']} were written when it "
            "was built. It was cut short or replaced.",
            f"Copy it again, or build it again: {record['rebuild']}",
        )
    if sha256_of(plan) != record["plan"]["sha256"]:
        raise ModelError(
            f"{plan.name} is not the plan that was recorded when it was built: its SHA-256 differs.",
            f"Copy it again, or build it again: {record['rebuild']}",
        )
    settings = record["settings"]
    if settings["version_compatible"]:
        raise ModelError(
            f"{plan.name} is version-compatible: it brings a runtime of its own, and code that a plan brings "
            "is never run here.",
            "Open it with the program that it was built for, or build it without --version-compatible.",
        )
    built = record["tensorrt"]
    if built["flavour"] != flavour:
        wrong.append(f"it was built by {built['flavour']}, and {flavour} is to run it")
    elif built["version"] != version:
        wrong.append(f"it was built by {built['flavour']} {built['version']}, and here is {version}")
    device = record.get("device") or {}
    made_for = device.get("compute_capability")
    compatible = settings["hardware_compatibility"] or flavour == "tensorrt_rtx"
    if made_for and compute_capability and made_for != compute_capability and not compatible:
        wrong.append(f"it was built for compute capability {made_for}, and this GPU has {compute_capability}")
    if record["platform"]["machine"] != platform.machine():
        wrong.append(f"it was built on {record['platform']['machine']}, and this is {platform.machine()}")
    if wrong:
        raise ModelError(
            f"{plan.name} cannot run here: {'; '.join(wrong)}.", f"Build it here: {record['rebuild']}"
        )


def rebuild_command(plan: Path, record: Optional[Mapping[str, Any]]) -> str:
    """The line that builds a plan again."""
    if record is not None:
        return str(record["rebuild"])
    return f"deadweight build {plan.stem}.onnx --out {plan}"


def command_for(model: Path, plan: Path, settings: Mapping[str, Any], target: Optional[str]) -> str:
    """`deadweight build` with the options that give these settings."""
    words = ["deadweight", "build", str(model), "--out", str(plan)]
    words += ["--target", target] if target else []
    low, usual, high = settings["batch"]
    words += ["--batch", f"{low},{usual},{high}"] if (low, usual, high) != (1, 1, 1) else []
    for name, shapes in settings["shapes"].items():
        words += ["--shapes", f"{name}=" + ",".join("x".join(map(str, shape)) for shape in shapes)]
    for option in ("workspace_bytes", "optimization_level", "dla_core", "max_gpu_fallbacks"):
        value = settings[option]
        words += [f"--{option.replace('_', '-')}", str(value)] if value is not None else []
    for option in ("hardware_compatibility", "compute_capability"):
        words += [f"--{option.replace('_', '-')}", settings[option]] if settings[option] else []
    words += ["--flavour", settings["flavour"]] if settings["flavour"] != "tensorrt" else []
    words += [f"--{option}" for option in ("sparse",) if settings[option]]
    words += ["--version-compatible"] if settings["version_compatible"] else []
    return " ".join(map(shlex.quote, words))


def platform_facts(root: Path = _ROOT) -> Dict[str, str]:
    """The machine, as far as a plan is tied to it."""
    found = {"machine": platform.machine(), "system": platform.system()}
    for name, path in (("board", "proc/device-tree/model"), ("l4t", "etc/nv_tegra_release")):
        try:
            text = (root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found[name] = text.strip("\0\n ").splitlines()[0]
    return found
