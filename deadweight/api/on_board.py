"""What the functions that take `on=` share: the choice of what runs there."""

from __future__ import annotations

from ..targets.engines.build_settings import BuildSettings
from ..targets.engines.plugins import given_plugins
from ..targets.errors import RecipeError
from ..targets.remote.on_board import Cast, HowThere
from ..targets.runtimes.runtime import runtime_named
from ..targets.target import load_target


def how_there(
    on: str | None, *, target: str | None = None, runtime: str | None = None, precision: str | None = None
) -> HowThere:
    """What runs on the board `on`, as the caller chose it."""
    if on is None and precision:
        raise RecipeError(
            "--precision is for a build on a board, and none is named.", "Give --on USER@HOST, or local."
        )
    runs = None if target is None else load_target(target).runtime
    named, plus, choices = (runtime or "").partition("+")
    own = runs if runs is not None and not runs.builds else None
    chosen = runtime_named(str(runtime)) if named else own
    # A target's facts are for a build.
    builds = runs is not None and runs.builds and (chosen is None or chosen.builds)
    settings = BuildSettings(precision="fp16" if precision is None else precision, plugins=given_plugins())
    how = "" if named else plus + choices
    return HowThere(chosen, settings, target if builds else None, half_writer(), how)


def half_writer() -> Cast | None:
    """The function that casts a file to FP16; None where onnx is not installed, as in a CI job."""
    try:
        from ..export.quantization.fp16 import write_half
    except ImportError:
        return None
    return write_half
