"""The commands `pack` and `unpack`: compress a model's file, and restore it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..targets.errors import RecipeError
from ..terminal.printer import out


def pack(
    model: Annotated[Path, Argument(help="An ONNX file: float, INT8, pruned or clustered.")],
    to: Annotated[Path | None, Option("-o", "--out", help="Default: the model's name and .dwz.")] = None,
    clusters: Annotated[
        list[str] | None,
        Option(
            "--clusters",
            metavar="[NAME=]BITS",
            help="Cluster weights to 2 ** BITS values first, 2 to 8: all, or one by name; repeatable.",
        ),
    ] = None,
    shared: Annotated[bool, Option("--shared", help="One code book for all weights.")] = False,
    price: Annotated[
        float, Option(help="With --clusters: the cost of a coded bit, e.g. 0.05; 0 for the nearest value.")
    ] = 0.0,
) -> None:
    """Compress an ONNX file; `deadweight unpack` restores the same file.

    Without --clusters it is lossless, byte for byte. With it the weights change, once, before they are
    packed: measure the cost. Batch norms should be folded first, as the stage export does.
    """
    from ..export.coding.cluster import cluster_file
    from ..export.coding.container import pack_file

    place = to or model.with_suffix(".dwz")
    everywhere, single = _bits(clusters or [])
    if not clusters:
        after = pack_file(model, place)
    else:
        with tempfile.TemporaryDirectory() as folder:
            changed = Path(folder) / model.name
            cluster_file(model, changed, everywhere, bits_of=single, shared=shared, price=price)
            after = pack_file(changed, place)
    out.say(f"{place}: {after:,} bytes, {model.stat().st_size / after:.1f} times smaller")


def unpack(
    packed: Annotated[Path, Argument(help="A .dwz file.")],
    to: Annotated[Path | None, Option("-o", "--out", help="Default: its name and .onnx.")] = None,
) -> None:
    """Restore the ONNX file that was packed. A board does the same without onnx or torch."""
    from ..targets.coded.container import unpack_file

    made = unpack_file(packed, to or packed.with_suffix(".onnx"))
    out.say(f"{made}: {made.stat().st_size:,} bytes")


def _bits(given: list[str]) -> tuple[int, dict[str, int]]:
    """The bits for all weights (5 if only single ones are named), and those for single ones."""
    everywhere, single = 5, {}
    for text in given:
        name, _, bits = text.rpartition("=")
        if not bits.isdecimal():
            cure = "Give e.g. --clusters 5 --clusters fc1.weight=6."
            raise RecipeError(f"--clusters {text} gives no number of bits.", cure)
        if name:
            single[name] = int(bits)
        else:
            everywhere = int(bits)
    return everywhere, single
