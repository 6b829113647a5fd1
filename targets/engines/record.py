"""The record of an engine: its source, builder and machine, and the command that rebuilds it.

A plan only runs where it was built: with that TensorRT, on that GPU architecture, often on that board.
TensorRT reports this after reading the plan, as a mismatch of tags; the record allows it before, with both
values.
"""

from __future__ import annotations

import platform
import shlex
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Union

from ..artifact import read_json, sha256_of
from ..errors import MISFITS, ModelError, reported
from .build_settings import BuildSettings

SCHEMA = 1
_REQUIRED = {
    "plan": ("bytes", "sha256"),
    "tensorrt": ("flavour", "version"),
    "settings": ("dla_core", "version_compatible", "hardware_compatibility"),
    "platform": ("machine",),
}
"""Keys of a record that are read before its plan is opened."""


_FORM = reported(ModelError, "An engine's record has another form", "Build the engine again.", *MISFITS)
"""Of a function that reads a record: what is wrong in it becomes an error."""


@_FORM
def engine_facts(record: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    """What an engine is made of, as plain values for the conditions of its measurement; empty if unknown."""
    if record is None or "types" not in record:
        return {}
    flags = {flag.lstrip("-").upper() for flag in record["flags"]}
    return {
        "version": record["tensorrt"]["version"],
        "strongly_typed": record["tensorrt"]["strongly_typed"],
        "flags": list(record["flags"]),
        "precision": record["settings"]["precision"],
        "int8": record["types"]["int8"] or "INT8" in flags,
        "half": record["types"]["half"] or "FP16" in flags,
        "limits": dict(record["limits"]),
        "evidence": record["evidence"],
    }


def record_path(plan: Union[str, Path]) -> Path:
    """The path of a plan's record: `model.plan` has `model.plan.json`."""
    return Path(f"{plan}.json")


def read_record(plan: Path) -> Optional[Dict[str, Any]]:
    """The record of a plan; None without one, as for a plan that trtexec built."""
    path = record_path(plan)
    if not path.is_file():
        return None
    record = read_json(path)
    if record.get("schema") != SCHEMA or record.get("kind") != "engine":
        raise ModelError(
            f"{path} is not an engine's record that this version can read (schema {SCHEMA}).",
            f"Build the engine again with this version, or remove {path} to open the plan without it.",
        )
    missing = [name for name in ("evidence", "rebuild") if name not in record]
    for name, keys in _REQUIRED.items():
        table = record.get(name)
        missing += [f"{name}.{key}" for key in keys if not isinstance(table, dict) or key not in table]
    if missing:
        raise ModelError(
            f"{path} is incomplete: it lacks {', '.join(missing)}.",
            f"Copy it again, build the engine again, or remove {path} to open the plan without it.",
        )
    return record


@_FORM
def check_record(
    record: Mapping[str, Any], plan: Path, *, flavour: str, version: str, compute_capability: Optional[str]
) -> None:
    """Compares a plan with its record, and the record with this machine."""
    faults: List[str] = []
    size, recorded = plan.stat().st_size, record["plan"]["bytes"]
    cure = f"Copy it again, or build it again: {record['rebuild']}"
    if size != recorded:
        what = f"has {size} bytes, but {recorded} were written by its build. It was truncated or replaced."
        raise ModelError(f"{plan.name} {what}", cure)
    if sha256_of(plan) != record["plan"]["sha256"]:
        raise ModelError(f"{plan.name} is not the recorded plan: its SHA-256 differs.", cure)
    settings = record["settings"]
    if settings["version_compatible"]:
        raise ModelError(
            f"{plan.name} is version-compatible: it contains a runtime, which is never run here.",
            "Open it with the program it was built for, or build it without --version-compatible.",
        )
    if settings.get("standalone"):
        raise ModelError(
            f"{plan.name} is a loadable for cuDLA, not an engine: TensorRT cannot open it.",
            "Load it with cuDLA (cudlaModuleLoadFromMemory), or build it without --standalone.",
        )
    built = record["tensorrt"]
    if built["flavour"] != flavour:
        faults.append(f"it was built by {built['flavour']}, not {flavour}")
    elif any(was != now for was, now in zip(str(built["version"]).split("."), version.split("."))):
        # trtexec knows three of the four parts of the bindings' version.
        faults.append(f"it was built by {built['flavour']} {built['version']}, but here is {version}")
    made_for = (record.get("device") or {}).get("compute_capability")
    compatible = settings["hardware_compatibility"] or flavour == "tensorrt_rtx"
    if made_for and compute_capability and made_for != compute_capability and not compatible:
        faults.append(
            f"it was built for compute capability {made_for}, but this GPU has {compute_capability}"
        )
    if record["platform"]["machine"] != platform.machine():
        faults.append(f"it was built on {record['platform']['machine']}, but this is {platform.machine()}")
    if faults:
        raise ModelError(
            f"{plan.name} cannot run here: {'; '.join(faults)}.", f"Build it here: {record['rebuild']}"
        )


def check_comparable(plans: Iterable[Path]) -> str:
    """The common precision of plans that are to be compared; empty where a plan has no record."""
    records = {str(plan): read_record(plan) for plan in plans}
    built = {
        name: (str(one["settings"].get("precision", "")), str(sorted(one.get("limits", {}).items())))
        for name, one in records.items()
        if one is not None
    }
    if len(set(built.values())) > 1:
        each = "; ".join(f"{name}: {precision} {limits}" for name, (precision, limits) in built.items())
        raise ModelError(
            f"These engines were built with unequal precisions or limits, so they are not compared: {each}.",
            "Compare the ONNX files with --on (local for this machine), which builds both alike; or build "
            "both with one --precision and one --workspace-bytes.",
        )
    return next(iter(built.values()))[0] if len(built) == len(records) else ""


def rebuild_command(plan: Path, record: Optional[Mapping[str, Any]]) -> str:
    """The command that builds a plan again."""
    return str(record["rebuild"]) if record is not None else f"deadweight build {plan.stem}.onnx --out {plan}"


def command_for(model: Path, plan: Path, settings: Mapping[str, Any], target: Optional[str]) -> str:
    """`deadweight build` with the options for these settings."""
    words = ["deadweight", "build", str(model), "--out", str(plan)]
    words += ["--target", target] if target else []
    for name, shapes in settings["shapes"].items():
        words += ["--shapes", f"{name}=" + ",".join("x".join(map(str, shape)) for shape in shapes)]
    for library in settings["plugins"]:
        words += ["--plugin", library]
    given = {**settings, "batch": ",".join(map(str, settings["batch"]))}
    for name, usual in {**vars(BuildSettings()), "batch": "1,1,1"}.items():
        if given[name] != usual and name not in ("shapes", "plugins"):
            words += [f"--{name.replace('_', '-')}", *([] if given[name] is True else [str(given[name])])]
    return " ".join(map(shlex.quote, words))


def platform_facts(root: Path = Path("/")) -> Dict[str, str]:
    """The facts about the machine on which a plan depends."""
    facts = {"machine": platform.machine(), "system": platform.system()}
    for name, path in (("board", "proc/device-tree/model"), ("l4t", "etc/nv_tegra_release")):
        try:
            text = (root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        facts[name] = text.strip("\0\n ").splitlines()[0]
    return facts
