"""The result of a build: the plan, its record and the whole log."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from ..artifact import sha256_of, write_json, write_text
from ..target import Target
from .build_settings import BuildSettings
from .log import Findings, Line
from .record import SCHEMA, command_for, log_path, platform_facts, record_path


@dataclass(frozen=True)
class Built:
    """A plan, its record (see docs/engines.md) and the whole log of the build."""

    plan: Path
    record: Mapping[str, Any]
    findings: Findings
    log: Tuple[Line, ...]


def made_of(
    model: Path, plan: Path, settings: BuildSettings, *, target: Optional[Target], root: Path, simulated: bool
) -> Dict[str, Any]:
    """The part of a record that all builders share: source, target, settings and the rebuild command."""
    name = None if target is None else target.name
    return {
        "schema": SCHEMA,
        "kind": "engine",
        "plan": {"file": plan.name, "bytes": plan.stat().st_size, "sha256": sha256_of(plan)},
        "model": {"file": str(model), "bytes": model.stat().st_size, "sha256": sha256_of(model)},
        "evidence": "simulated" if simulated else "measured",
        "platform": platform_facts(root),
        "target": name,
        "settings": asdict(settings),
        "rebuild": command_for(model, plan, asdict(settings), name),
    }


def written(plan: Path, record: Dict[str, Any], findings: Findings, lines: Sequence[Line]) -> Built:
    """Writes record and log beside the plan."""
    write_text(log_path(plan), "".join(f"[{severity}] {text}\n" for severity, text in lines))
    write_json(record_path(plan), record)
    return Built(plan, record, findings, tuple(lines))
