"""The judgement of layers: which layers of two networks, timed interleaved, got faster.

It takes times by layer name from any runtime (`ort_layers` from ONNX Runtime's profile; TensorRT's IProfiler
gives the same). Sixty layers give sixty chances of a false change, so Holm's correction (1979) is applied to
exact sign tests over events, and the intervals hold for all layers at once (Bonferroni). As in `judge`, an
event is one observation. A board sends all samples, not statistics, so that its layers are judged and
explained exactly as those of this machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import MeasurementError
from ..machine.probe import conditions, voided
from ..plain import plain
from ..progress import Counted
from ..runtimes.runtime import runtime_named
from .binomial import binomial_below
from .judge import order_statistic
from .measurement import Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..runtimes.session import Arrays

MARGIN = 0.02
"""The change of a layer's time that does not matter."""
_ERROR = 0.05


@dataclass(frozen=True, eq=False)
class Layer:
    """The times of one layer, and its work.

    `times_s` is float64[events, rounds], seconds of one run; the other network's has the same shape, and the
    same event and round of both are milliseconds apart. What a runtime does not report stays 0 or empty.
    """

    name: str
    kind: str
    """Its operator, as in `Conv`."""
    times_s: NDArray[np.float64]
    conversion_s: float = 0.0
    """Part of the time that goes into conversions of layout or type before or after it."""
    weight: Tuple[int, ...] = ()
    """Shape of its weight: outputs first for convolutions."""
    moved_bytes: int = 0
    """Bytes read and written in one run: activations and weights."""
    macs: int = 0
    kernels: Tuple[str, ...] = field(default=())
    """The runtime's kernels for it, in order."""
    resolution_s: float = 0.0
    """How far its true time may be from `times_s`, where the runtime's clock is too coarse."""

    @property
    def median_s(self) -> float:
        """The median time of one run."""
        return float(np.median(self.times_s))


@dataclass(frozen=True)
class LayerJudgement:
    """One layer of the candidate compared with the same layer of the baseline; ratios as in `Judgement`."""

    name: str
    kind: str
    outcome: str
    ratio: float
    low: float
    high: float
    """Of an interval that holds for all layers at once; 0 and infinite where there are too few events."""
    p_value: float
    """Two-sided, corrected for the number of layers."""
    baseline_s: float
    candidate_s: float
    pruned: bool
    """Whether the candidate's layer has fewer weights."""
    reason: str = ""
    """Why a pruned layer did not get faster; see `layer_reasons`."""


def judge_layers(baseline: Mapping[str, Layer], candidate: Mapping[str, Layer]) -> Tuple[LayerJudgement, ...]:
    """Judges every layer that both networks have, in the baseline's order.

    The probability that any unchanged layer is called faster or slower is at most 5 %, under any
    dependence between layers.

    Raises:
        MeasurementError: no layer is in both, or their times cannot be paired.
    """
    shared = matching(baseline, candidate)
    ratios = {}
    for name, other in shared.items():
        before, after = baseline[name].times_s, candidate[other].times_s
        if before.shape != after.shape or before.ndim != 2 or not before.size:
            raise MeasurementError(
                f"The times of layer {name} cannot be paired: shapes {before.shape} and {after.shape}.",
                "Time both networks interleaved, in one call.",
            )
        if (
            not (np.isfinite(before).all() and np.isfinite(after).all() and (before > 0).all())
            or (after <= 0).any()
        ):
            raise MeasurementError(
                f"Layer {name} has times that are not positive and finite.", "Measure again."
            )
        ratios[name] = np.sort(np.median(np.log(before) - np.log(after), axis=1))
    corrected = holm([_sign_test(values) for values in ratios.values()])
    judgements = []
    for (name, values), p_value in zip(ratios.items(), corrected):
        order, _ = order_statistic(values.size, 1 - _ERROR / len(ratios))
        before_layer, after_layer = baseline[name], candidate[shared[name]]
        doubt = _doubt(before_layer) + _doubt(after_layer)
        low, high = 0.0, math.inf
        if order:
            low, high = math.exp(values[order - 1] - doubt), math.exp(values[-order] + doubt)
        middle = float(np.median(values))
        if order and low >= 1 / (1 + MARGIN) and high <= 1 + MARGIN:
            outcome = "equal"
        elif p_value <= _ERROR and abs(middle) > doubt:
            outcome = "faster" if middle > 0 else "slower"
        else:
            outcome = "cannot_tell"
        judgements.append(
            LayerJudgement(
                name=name,
                kind=before_layer.kind,
                outcome=outcome,
                ratio=math.exp(middle),
                low=low,
                high=high,
                p_value=p_value,
                baseline_s=before_layer.median_s,
                candidate_s=after_layer.median_s,
                pruned=0 < math.prod(after_layer.weight or (0,)) < math.prod(before_layer.weight or (0,)),
            )
        )
    return tuple(judgements)


def matching(baseline: Mapping[str, Layer], candidate: Mapping[str, Layer]) -> Dict[str, str]:
    """Matches the baseline's layers to the candidate's: by name, else by the order of the weighted layers."""
    for side, layers in (("baseline", baseline), ("candidate", candidate)):
        if not layers:
            raise MeasurementError(
                f"The profile of the {side} names no layers.",
                "Export the model with named nodes (deadweight's own export names them by module).",
            )
    by_name = {name: name for name in baseline if name in candidate}
    weighted = [name for name, layer in baseline.items() if layer.weight]
    if by_name and 2 * sum(name in by_name for name in weighted) >= len(weighted):
        return by_name
    others = [name for name, layer in candidate.items() if layer.weight]
    if weighted and [baseline[name].kind for name in weighted] == [candidate[name].kind for name in others]:
        return dict(zip(weighted, others))
    raise MeasurementError(
        f"The layers of the two networks cannot be matched: {', '.join(list(baseline)[:3])}, ... "
        f"and {', '.join(list(candidate)[:3])}, ...",
        "Compare a network with one derived from it, exported by the same exporter.",
    )


def holm(p_values: Sequence[float]) -> List[float]:
    """P-values corrected for their number, in the given order (Holm 1979)."""
    total, worst = len(p_values), 0.0
    corrected = [0.0] * total
    for rank, at in enumerate(sorted(range(total), key=lambda index: p_values[index])):
        worst = max(worst, min(1.0, (total - rank) * p_values[at]))
        corrected[at] = worst
    return corrected


def _sign_test(ratios: NDArray[np.float64]) -> float:
    """Two-sided and exact; an event without a difference counts against both directions."""
    most = max(int((ratios > 0).sum()), int((ratios < 0).sum()))
    return min(1.0, 2 * (1 - binomial_below(most, ratios.size, 0.5)) if most else 1.0)


def _doubt(layer: Layer) -> float:
    """How far the logarithm of the true time may be from that of the measured time."""
    share = layer.resolution_s / layer.median_s
    return -math.log1p(-share) if share < 1 else math.inf


Layers = Dict[str, Dict[str, Layer]]
"""By model and layer."""


def profile_layers(
    models: Mapping[str, Path],
    *,
    protocol: Protocol,
    inputs: Optional[Arrays] = None,
    progress: Optional[Counted] = None,
) -> Dict[str, Any]:
    """Times the layers of ONNX files interleaved here; plain values for JSON, and why they are void."""
    time_layers = runtime_named(protocol.runtime).time_layers
    if time_layers is None:
        raise MeasurementError(
            "Layers are timed here through ONNX Runtime's profile, and these models are engines.",
            "Run deadweight profile --layers on the board itself.",
        )
    facts = conditions()
    timed = time_layers(models, protocol=protocol, inputs=inputs, progress=progress)
    facts["state_after"] = conditions()["state"]
    values = {
        name: [plain({**vars(layer), "times_s": layer.times_s.tolist()}) for layer in layers.values()]
        for name, layers in timed.items()
    }
    return {"void": list(voided(facts)), "layers": values}


def read_layers(answer: Mapping[str, Any]) -> Tuple[Layers, Tuple[str, ...]]:
    """Reads the answer of `profile_layers`: the layers, and why their times are void."""
    layers = {
        name: {one["name"]: _layer_of(one) for one in several} for name, several in answer["layers"].items()
    }
    return layers, tuple(answer["void"])


def _layer_of(answer: Mapping[str, Any]) -> Layer:
    fields = dict(answer)
    times, weight, kernels = fields.pop("times_s"), fields.pop("weight"), fields.pop("kernels")
    return Layer(times_s=np.array(times, np.float64), weight=tuple(weight), kernels=tuple(kernels), **fields)
