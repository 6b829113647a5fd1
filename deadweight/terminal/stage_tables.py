"""Terminal output of `prune` and `quantize`: facts by name, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .tables import listing, megabytes

if TYPE_CHECKING:
    from ..export.int8 import Int8
    from ..pipeline.runs.prune_command import Cut
    from ..targets.target import Target

DIALECTS = {"tensorrt": "TensorRT's symmetric dialect", "x86": "the dialect of ONNX Runtime on x86"}
NAMED = 3  # layers in a sentence
VERDICTS = {
    "good": "good: noise this small rarely costs accuracy",
    "look at it": "look at it: noise this large can cost accuracy; measure the score before you ship it",
}


def int8_facts(made: Int8, *, model: Path, target: Target, words: Sequence[str] = ()) -> RenderableType:
    """The facts of an INT8 network: calibration, change of outputs, layers in float."""
    facts, samples = Facts(), made.samples
    files = f"{len(samples.files)} file{'s' if len(samples.files) > 1 else ''}"
    ranges = f"{made.method} ranges"
    if made.noises:
        tried = ", ".join(
            f"{name} {noise:.2%}" for name, noise in sorted(made.noises.items(), key=itemgetter(1))
        )
        ranges += f", the least noise in the outputs: {tried}"
    facts.add("calibration", f"{samples.count} samples of {files}; {ranges}", *made.adequacy)
    if samples.left_out:
        size = samples.count // len(samples.plan)
        facts.add("", f"{samples.left_out} more samples do not fill a batch of {size} and were left out")
    if made.verdict:
        facts.add("verdict", VERDICTS[made.verdict])
    decided = made.hop.decided if made.hop else {}
    for name, one in made.hop.outputs.items() if made.hop else ():
        worst = f", {one.worst:.2%} in the worst ({samples.place(one.worst_sample)})"
        facts.add(
            f"{'ahead of it' if decided else 'output'} {name}",
            f"noise {one.noise:.2%} of its values in the median sample{worst if samples.count > 1 else ''}",
        )
    for name, operator in decided.items():
        share = made.hop.agree.get(name) if made.hop else None
        agrees = "not judged itself" if share is None else f"{share:.1%} of its decisions are the same"
        facts.add(f"output {name}", f"behind {operator}: {agrees}")
    if made.hop and made.hop.labels:
        count = len(made.hop.flips)
        more = f"; the first {len(made.flips)} are below" if count > len(made.flips) else ""
        samples_of = f"{count} of {made.hop.samples} samples"
        facts.add(
            "flips", f"the position of the largest value of {made.hop.labels} changes for {samples_of}{more}"
        )
    kept, floats = len(made.quantized.in_int8), made.quantized.left_float
    facts.add(
        "in INT8", f"{kept} of {kept + len(floats)} weighted layers, in {DIALECTS[made.quantized.dialect]}"
    )
    if made.folded:
        plural = "s" if made.folded > 1 else ""
        facts.add("", f"{made.folded} batch norm{plural} folded into the layers before")
    if floats:
        named = [f"{name}: {why}" for name, why in list(floats.items())[:NAMED]]
        facts.add("in float", "; ".join(named) + _more(len(floats)))
    if made.float_kernels:
        facts.add("", f"ONNX Runtime still runs in float: {', '.join(made.float_kernels[:NAMED])}")
    facts.add("file", f"{megabytes(made.bytes_before)} before, {megabytes(made.bytes_after)} now")
    if made.cache is not None:
        facts.add(
            "cache", f"{made.cache.path}: ranges of {made.cache.tensors} tensors of {made.cache.model.name}"
        )
    if made.cache is not None and made.cache.on_gpu is not None:
        left = made.cache.on_gpu
        first = f": {', '.join(left[:NAMED])}{_more(len(left))}" if left else ""
        facts.add("", f"DLA leaves {len(left)} layer{'s' * (len(left) != 1)} to the GPU{first}")
    for sentence in (made.half, made.unjudged, *made.remarks, *words):
        if sentence:
            facts.add("", sentence)
    title = Text(f"{model.name} in INT8 for {target.title}", style="bold")
    return Group(title, facts.table, *([_flips(made)] if made.flips else []))


def widths_table(cut: Cut) -> Table:
    """One row per group of neurons: their number before and after."""
    table = listing("group", "kind", numbers=("before", "after", "removed"))
    for name, width in cut.plan.widths.items():
        gone = f"{1 - width.after / width.before:.0%}" if width.after < width.before else ""
        table.add_row(name, width.kind, str(width.before), str(width.after), gone)
    return table


def cut_facts(cut: Cut, *, score_name: str) -> RenderableType:
    """The cost of the cut alone, and the size of the result."""
    from ..pipeline.report.units import count, percent, size

    assert cut.before is not None  # callers check it
    assert cut.after is not None
    facts, before, after = Facts(), cut.before.counts, cut.after.counts
    change = f"{cut.before.score:.4f} before, {cut.after.score:.4f} after the cut, on the validation split"
    facts.add(score_name, change, "Not tuned: fine-tuning (the stage finetune of a recipe) restores accuracy")
    for name, shown in (("parameters", count), ("macs", count), ("file_bytes", size)):
        old, new = getattr(before, name), getattr(after, name)
        label = {"macs": "multiply-adds", "file_bytes": "file"}.get(name, name)
        change = "not known: the shapes of a layer are not fixed"
        if old and new is not None:
            change = f"{shown(old)} before, {shown(new)} now, {percent(new / old)} of it"
        facts.add(label, change)
    form = "your own class, narrower" if cut.plan.form == "module" else "a graph of the same parameters"
    facts.add("form", form + (f": {cut.plan.reason}" if cut.plan.reason and cut.plan.form == "graph" else ""))
    facts.add("checks", *cut.words)
    return facts.table


def _flips(made: Int8) -> Table:
    table = listing("sample", numbers=("float", "INT8", "the float network's lead"))
    for flip in made.flips:
        table.add_row(flip.place, str(flip.before), str(flip.after), f"{flip.lead:.3g}")
    return table


class Facts:
    """Facts by name, one per line; a line without a name belongs to the fact before."""

    def __init__(self) -> None:
        self.table = Table.grid(padding=(0, 2))
        self.table.add_column(style="bold", no_wrap=True)
        self.table.add_column(ratio=1, overflow="fold")

    def add(self, name: str, *sentences: str) -> None:
        """A fact, and sentences under it."""
        for place, sentence in enumerate(sentences):
            self.table.add_row("" if place else name, sentence)


def _more(count: int) -> str:
    return f"; and {count - NAMED} more" if count > NAMED else ""
