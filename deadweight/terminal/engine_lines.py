"""Terminal output of `build`: the engine's file and the important lines of its log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from .tables import megabytes

SHOWN = 5


def build_lines(record: Mapping[str, Any], plan: Path) -> list[RenderableType]:
    """The record of a build, from top to bottom."""
    built, findings, device = record["tensorrt"], record["findings"], record["device"]
    gpu = "a GPU that could not be asked" if device is None else f"SM {device['compute_capability']}"
    typed = "strongly typed" if built["strongly_typed"] else f"flags {', '.join(record['flags']) or 'none'}"
    shown: list[RenderableType] = [
        f"[bold]{escape(str(plan))}[/]: {megabytes(record['plan']['bytes'])}, {built['flavour']} "
        f"{built['version']} for {gpu}, {typed}, built in {record['build_s']:.1f} s"
    ]
    shown.append(Text(f"  from {record['model']['file']}, precision {record['settings']['precision']}"))
    if record["evidence"] != "measured":
        shown.append(f"[red]{record['evidence']}[/]: this engine proves nothing about speed.")
    shown += [f"  {name.replace('_', ' ')}: {megabytes(size)}" for name, size in findings["bytes"].items()]
    shown.append(f"  reformats: {findings['reformats']}, fallbacks from DLA: {len(findings['fallbacks'])}")
    if findings["skipped_tactics"]:
        shown.append(f"  {findings['skipped_tactics']} kernels were not tried: not enough memory")
    if findings.get("sparse_layers") is not None:
        shown.append(
            f"  2:4: {findings['sparse_layers']} layers have the pattern, {findings['sparse_kernels'] or 0} "
            "use a kernel for it; for the others a dense one is faster"
        )
    for kind in ("errors", "warnings"):
        texts = [" ".join(text.split())[:300] for text in findings[kind]]
        shown += [Text(f"  {kind[:-1]}: {text}") for text in texts[:SHOWN]]
        if len(texts) > SHOWN:
            shown.append(f"  and {len(texts) - SHOWN} {kind} more, in the log")
    if record.get("fit"):
        shown.append(f"  memory: {record['fit']['outcome'].replace('_', ' ')}")
    used = "from the cache" if record["timing_cache"]["used"] else "measured"
    return [*shown, f"  kernel timings: {used}", Text(f"The record: {plan}.json, the log: {plan}.log")]
