"""Layer times from ONNX Runtime's profile, of several networks interleaved.

The runtime writes each kernel's time, truncated to whole microseconds, under a name made from the nodes it
fused: `fused fc1/Gemm`, `relu/Relu_nchwc` for a convolution with its ReLU, `ReorderInput_token_4`. Each
kernel is assigned to the layer of the original graph that it computes: the weighted node it is named after,
or the one that feeds the node it is named after. Conversions of layout and type belong to the next layer if
they prepare its input, else to the previous one. Half a microsecond, the mean truncation error, is added to
each time, so that ratios of short kernels are not overstated.
"""

from __future__ import annotations

import gc
import json
import math
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..errors import MeasurementError
from ..onnx_file import Nodes, read_nodes
from ..progress import Counted
from ..runtimes.ort import open_ort
from .inputs import fed, with_inputs
from .layers import Layer
from .measurement import Protocol
from .ort_names import HEAVY, labels_of, owners_of

if TYPE_CHECKING:
    from ..runtimes.session import Arrays

LAYER_PROTOCOL = Protocol(events=24, event_s=0.03, block_s=0.002, settle_s=0.001, min_rounds=4)


@dataclass
class _Kernel:
    """One kernel of a network, over all runs of one event, with its times in microseconds."""

    name: str
    op: str
    facts: Mapping[str, Any]
    times_us: List[float] = field(default_factory=list)


def time_layers(
    models: Mapping[str, Path],
    *,
    protocol: Protocol = LAYER_PROTOCOL,
    inputs: Optional[Arrays] = None,
    progress: Optional[Counted] = None,
) -> Dict[str, Dict[str, Layer]]:
    """Profiles models interleaved in one process; returns each model's layers in execution order.

    Every model gets `inputs`; without them, random ones. The profiler's overhead is the same for all models:
    compare its times, do not add them. Layers that did not run in every round (a branch of an If) are left
    out: their times cannot be paired.

    Raises:
        ModelError: as `open_session`.
        MeasurementError: a profile is incomplete or has no layer names.
    """
    protocol = with_inputs(protocol, inputs)
    graphs = {name: read_nodes(path) for name, path in models.items()}
    rng, rounds = random.Random(), 0
    kernels: Dict[str, List[List[List[_Kernel]]]] = {}
    blocks: Dict[str, Tuple[int, int]] = {}
    for index in range(protocol.events):
        gc.collect()
        profiles, blocks, rounds = _event(models, blocks, rounds, protocol=protocol, inputs=inputs, rng=rng)
        for name, profile in profiles.items():
            kernels.setdefault(name, []).append(_rounds(profile, *blocks[name], rounds=rounds))
        if progress is not None:
            progress(index + 1, protocol.events)
    return {name: _layers(kernels[name], graphs[name]) for name in models}


def _event(
    models: Mapping[str, Path],
    blocks: Dict[str, Tuple[int, int]],
    rounds: int,
    *,
    protocol: Protocol,
    inputs: Optional[Arrays],
    rng: random.Random,
) -> Tuple[Dict[str, List[Dict[str, Any]]], Dict[str, Tuple[int, int]], int]:
    """Loads all models with the profiler on and runs them, untimed and timed runs interleaved, as planned."""
    from time import perf_counter

    with tempfile.TemporaryDirectory() as folder:
        names = rng.sample(sorted(models), len(models))
        padding = [np.ones(rng.randrange(1, 4000) * 64, np.uint8) for _ in range(len(names))]
        sessions = {
            name: open_ort(Path(models[name]), threads=protocol.threads, profile=Path(folder) / f"{at}")
            for at, name in enumerate(names)
        }
        calls = {
            name: session.prepare(fed(session, inputs, batch=protocol.batch, seed=protocol.seed))
            for name, session in sessions.items()
        }
        del padding
        if not blocks:
            cost_s = {}
            for name, call in calls.items():
                times = []
                for _ in range(5):
                    start = perf_counter()
                    call()
                    times.append(perf_counter() - start)
                cost_s[name] = min(times)
            # The same block for all, so that incomplete settling affects them equally.
            longest = max(cost_s.values())
            block = (max(1, round(protocol.settle_s / longest)), max(1, round(protocol.block_s / longest)))
            rounds = max(protocol.min_rounds, int(protocol.event_s / (sum(block) * longest)))
            blocks = dict.fromkeys(models, block)
            warmup_runs = 6
        else:
            warmup_runs = 1
        for _ in range(rounds):
            for name in rng.sample(names, len(names)):
                for _ in range(sum(blocks[name])):
                    calls[name]()
        profiles = {}
        for name, session in sessions.items():
            profiles[name] = _runs(session.end_profile())[warmup_runs:]
            session.close()
    return profiles, blocks, rounds


def _runs(path: Path) -> List[Dict[str, Any]]:
    """The kernels of each run, in the order of the runs: {name: event}."""
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MeasurementError(
            f"ONNX Runtime's profile is incomplete: {error}.", "Free some space in the temporary folder."
        ) from error
    return split_runs(events)


def split_runs(events: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """Splits a profile's events by run: kernel name -> its event. The event `model_run` ends a run."""
    runs: List[Dict[str, Any]] = []
    kernels: Dict[str, Any] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            name = str(event["name"])
            # The body of a loop runs more than once: its kernels' times are added.
            before = kernels[name]["dur"] if name in kernels else 0
            kernels[name] = {**event, "dur": before + event["dur"]}
        elif event.get("name") == "model_run":
            runs.append(kernels)
            kernels = {}
    if not any(runs):
        raise MeasurementError(
            "The profile names no layers.", "Export the model with named nodes, and profile it again."
        )
    return runs


def _rounds(runs: List[Dict[str, Any]], settling: int, timed: int, *, rounds: int) -> List[List[_Kernel]]:
    """Kernels by round, with the times of the timed runs only."""
    block = settling + timed
    if len(runs) != block * rounds:
        raise MeasurementError(
            f"The profile has {len(runs)} runs, but {block * rounds} were made.",
            "Use fewer or shorter events: the runtime keeps at most a million entries.",
        )
    rounds_ = []
    for at in range(rounds):
        kernels: Dict[str, _Kernel] = {}
        for run in runs[at * block + settling : (at + 1) * block]:
            for name, event in run.items():
                facts = event.get("args", {})
                kernel = kernels.setdefault(name, _Kernel(name, str(facts.get("op_name", "")), facts))
                kernel.times_us.append(float(event["dur"]) + 0.5)
        rounds_.append(list(kernels.values()))
    return rounds_


def _layers(events: List[List[List[_Kernel]]], graph: Nodes) -> Dict[str, Layer]:
    """Groups kernels into layers, from all rounds: an If may take another branch in one of them."""
    first: Dict[str, _Kernel] = {}
    for kernel in (kernel for event in events for kernels in event for kernel in kernels):
        first.setdefault(kernel.name, kernel)
    owners = owners_of([(kernel.name, kernel.op) for kernel in first.values()], graph)
    shape = (len(events), len(events[0]))
    times: Dict[str, np.ndarray[Any, Any]] = {owner.name: np.zeros(shape) for owner, _ in owners.values()}
    conversions = {name: np.zeros(shape) for name in times}
    doubts = {name: np.zeros(shape) for name in times}
    for at, event in enumerate(events):
        for round_, kernels in enumerate(event):
            for kernel in kernels:
                owner, converts = owners[kernel.name]
                middle = _middle_half(kernel.times_us)
                spent_s = math.fsum(middle) / len(middle) * 1e-6
                times[owner.name][at, round_] += spent_s
                # Times are whole microseconds: where all are equal, the mean is anywhere within that one.
                doubts[owner.name][at, round_] += 0.5e-6 if middle[0] == middle[-1] else 0.0
                if converts:
                    conversions[owner.name][at, round_] += spent_s
    layers: Dict[str, Layer] = {}
    labels = labels_of([owner for owner, _ in owners.values()])
    for name in times:
        if not times[name].all():
            continue
        own = [kernel for kernel in first.values() if owners[kernel.name][0].name == name]
        node = next(owners[kernel.name][0] for kernel in own)
        main = next((kernel for kernel in own if not owners[kernel.name][1]), own[0])
        weight = graph.weight_of(node) if node.op_type in HEAVY else ()
        layers[labels[name]] = Layer(
            name=labels[name],
            kind=node.op_type,
            times_s=times[name],
            conversion_s=float(np.median(conversions[name])),
            weight=weight,
            moved_bytes=sum(_bytes(kernel.facts) for kernel in own),
            macs=_macs(weight, main.facts),
            kernels=tuple(kernel.op for kernel in own),
            resolution_s=float(np.median(doubts[name])),
        )
    return layers


def _middle_half(times: Sequence[float]) -> List[float]:
    """Sorted. Their mean varies less than that of all, and is finer than a median of whole microseconds."""
    ordered = sorted(times)
    cut = len(ordered) // 4
    return ordered[cut : len(ordered) - cut]


def _bytes(facts: Mapping[str, Any]) -> int:
    return sum(int(facts.get(key, 0)) for key in ("output_size", "parameter_size", "activation_size"))


def _macs(weight: Tuple[int, ...], facts: Mapping[str, Any]) -> int:
    """Products of one run: the weight's size times the number of positions it is applied to."""
    shapes = [shape for output in facts.get("output_type_shape", ()) for shape in output.values()]
    if not weight or not shapes:
        return 0
    positions = math.prod(shapes[0][2:]) if len(weight) > 2 else math.prod(shapes[0][:-1])
    return math.prod(weight) * int(positions)
