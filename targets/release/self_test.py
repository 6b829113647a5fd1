"""The golden test of a bundle on a board: its golden inputs are run, and the outputs compared.

It uses the runtime that the model will run on there. A board with TensorRT and without ONNX Runtime builds an
engine from an ONNX file, which takes as long as for the model's use.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, Mapping, Tuple

import numpy as np

from ..errors import ModelError, RefusedError
from ..plain import plain
from ..runtimes.infer import load_arrays, run_all
from ..runtimes.open import open_session
from ..runtimes.runtime import Runtime, by_suffix, runtime_named, usable
from .trust import Bundle

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Rehearsal:
    """The largest deviation of the outputs, as a share of the largest expected value; infinite for NaN."""

    furthest: float
    tolerance: float
    runtime: str

    @property
    def holds(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return self.furthest <= self.tolerance

    def to_json(self) -> Dict[str, Any]:
        return {**plain(self), "holds": self.holds}


def rehearse(bundle: Bundle, *, threads: int = 1) -> Rehearsal:
    """Runs a bundle's model on its golden inputs; every byte is checked before it is used.

    Raises:
        RefusedError: a file's bytes are not those that were signed.
        ModelError: the model does not run, or its outputs have other names or shapes.
        TargetError: there is no runtime for it here.
    """
    name, golden = bundle.manifest.model, bundle.manifest.golden
    with bundle.sealed(golden.inputs) as inputs, bundle.sealed(golden.outputs) as outputs:
        inputs_by_name, expected = load_arrays(inputs), load_arrays(outputs)
    samples = len(next(iter(inputs_by_name.values()))) if inputs_by_name else 0
    with bundle.sealed(name) as sealed, _runnable(sealed, name, samples) as (path, runtime):
        with contextlib.closing(open_session(path, runtime=runtime, threads=threads)) as session:
            outputs_by_name = run_all(session, inputs_by_name)
        return Rehearsal(furthest(expected, outputs_by_name), golden.tolerance, session.runtime)


def refuse_wrong(bundle: Bundle) -> Rehearsal:
    """Runs the golden test and refuses a model that fails it."""
    cure = "Check whether the runtime here is older than that of its maker; release a model for this board."
    try:
        result = rehearse(bundle)
    except ModelError as error:
        raise RefusedError(f"The model does not run here: {error.what}", cure) from error
    if not result.holds:
        raise RefusedError(
            f"The model's outputs are wrong: they deviate by {100 * result.furthest:.2g} % of the largest, "
            f"{100 * result.tolerance:.2g} % are allowed.",
            cure,
        )
    return result


def furthest(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> float:
    """The largest difference between two sets of outputs, as a share of the expected ones' largest value.

    Infinite where only one of them is finite.
    """
    worst = -1.0
    for name, array in expected.items():
        if name not in found or found[name].shape != array.shape:
            raise ModelError(
                f"The model has no output '{name}' of shape {list(array.shape)}.", "Check the model."
            )
        if not array.size:
            continue
        want, got = np.asarray(array, np.float64), np.asarray(found[name], np.float64)
        usual = np.isfinite(want)
        if not np.array_equal(want[~usual], got[~usual], equal_nan=True) or not np.isfinite(got[usual]).all():
            return float("inf")
        scale = max(float(np.abs(want[usual]).max()) if usual.any() else 0.0, 1e-12)
        gap = np.abs(got[usual] - want[usual])
        worst = max(worst, float(gap.max()) / scale if gap.size else 0.0)
    if worst < 0:
        raise ModelError(
            "The bundle has no golden outputs, so it cannot be tested.", "Make the bundle again."
        )
    return worst


@contextlib.contextmanager
def _runnable(sealed: Path, name: str, samples: int) -> Iterator[Tuple[Path, Runtime]]:
    usual, builder = usable(by_suffix(name)), usable(runtime_named("tensorrt"))
    if usual.builds or usual.installed or not builder.installed:
        yield sealed, usual
    else:
        from ..engines.build import build_engine
        from ..engines.build_settings import BuildSettings

        with tempfile.TemporaryDirectory() as folder:
            size = max(samples, 1)
            settings = BuildSettings(batch=(1, size, size))
            yield build_engine(sealed, Path(folder) / "tried.plan", settings=settings).plan, builder
