"""Layer times from ONNX Runtime's profile, of several networks interleaved.

The runtime writes each kernel's time, truncated to whole microseconds, under a name made from the nodes it
fused: `fused fc1/Gemm`, `relu/Relu_nchwc` for a convolution with its ReLU, `ReorderInput_token_4`. Each
kernel is assigned to the layer of the original graph that it computes: the weighted node it is named after,
or the one that feeds the node it is named after. Conversions of layout and type belong to the next layer if
they prepare its input, else to the previous one. Half a microsecond, the mean truncation error, is added to
each time, so that ratios of short kernels are not overstated.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import re
import tempfile
import uuid
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Optional, Sequence

import numpy as np

from ..artifact import json_of
from ..errors import MeasurementError
from ..onnx_file import Node, Nodes, read_nodes
from ..progress import Counted
from ..runtimes.ort import open_ort
from .block_plan import Block, Plan, ns_of, planned
from .events import take_events
from .inputs import fed, with_inputs
from .layers import Layer
from .measurement import Protocol

if TYPE_CHECKING:
    from ..runtimes.session import Arrays

LAYER_PROTOCOL = Protocol(events=24, event_s=0.03, block_s=0.002, settle_s=0.001, min_rounds=4)
_TRIAL_RUNS = 5
_INWARD = ("ReorderInput", "QuantizeLinear", "Transpose", "Cast", "DynamicQuantizeLinear")
_OUTWARD = ("ReorderOutput", "DequantizeLinear")
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger", "ConvInteger", "LSTM", "GRU", "RNN")
_AFFIXES = re.compile(r"^fused |(_kernel_time|_nchwc|_nhwc|_token_\d+|_quant|_Conv|_fused)$")


@dataclass
class _Kernel:
    """One kernel of a network, over all runs of one event, with its times in microseconds."""

    name: str
    op: str
    facts: Mapping[str, Any]
    times_us: list[float] = field(default_factory=list)


def time_layers(
    models: Mapping[str, Path],
    *,
    protocol: Protocol = LAYER_PROTOCOL,
    inputs: Optional[Arrays] = None,
    progress: Optional[Counted] = None,
) -> dict[str, dict[str, Layer]]:
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
    kernels: dict[str, list[list[list[_Kernel]]]] = {}
    job = partial(_event, models, inputs=inputs, protocol=protocol)
    taken = take_events(job, models=models.values(), protocol=protocol, seed=uuid.uuid4().hex)
    with contextlib.closing(taken):
        for index, (profiles, _) in enumerate(taken):
            for name, rounds in profiles.items():
                kernels.setdefault(name, []).append(rounds)
            if progress is not None:
                progress(index + 1, protocol.events)
    return {name: _layers(kernels[name], graphs[name]) for name in models}


def _event(
    models: Mapping[str, Path],
    plan: Optional[Plan],
    seed: str,
    *,
    protocol: Protocol,
    inputs: Optional[Arrays],
) -> tuple[dict[str, list[list[_Kernel]]], Plan]:
    """Loads all models with the profiler on and runs them, untimed and timed runs interleaved, as planned.

    Returns each model's kernels by round.
    """
    gc.collect()
    rng = random.Random(seed)
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
        warmup_runs = 1
        if plan is None:
            warmup_runs += _TRIAL_RUNS
            # The same block for all, so that incomplete settling affects them equally.
            longest = max(min(ns_of(call) for _ in range(_TRIAL_RUNS)) for call in calls.values())
            plan = planned(dict.fromkeys(names, longest), protocol)
        for _ in range(plan.rounds):
            for name in rng.sample(names, len(names)):
                for _ in range(plan.blocks[name].all_runs):
                    calls[name]()
        profiles = {}
        for name, session in sessions.items():
            runs = _runs(session.end_profile())[warmup_runs:]
            profiles[name] = _rounds(runs, plan.blocks[name], plan.rounds)
            session.close()
    return profiles, plan


def _runs(path: Path) -> list[dict[str, Any]]:
    """The kernels of each run, in the order of the runs: {name: event}."""
    try:
        events = json_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MeasurementError(
            f"ONNX Runtime's profile is incomplete: {error}.", "Free some space in the temporary folder."
        ) from error
    return split_runs(events)


def split_runs(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Splits a profile's events by run: kernel name -> its event. The event `model_run` ends a run."""
    runs: list[dict[str, Any]] = []
    kernels: dict[str, Any] = {}
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


def _rounds(runs: list[dict[str, Any]], block: Block, rounds: int) -> list[list[_Kernel]]:
    """Kernels by round, with the times of the timed runs only."""
    if len(runs) != block.all_runs * rounds:
        raise MeasurementError(
            f"The profile has {len(runs)} runs, but {block.all_runs * rounds} were made.",
            "Use fewer or shorter events: the runtime keeps at most a million entries.",
        )
    rounds_ = []
    for at in range(rounds):
        kernels: dict[str, _Kernel] = {}
        for run in runs[at * block.all_runs + block.settling : (at + 1) * block.all_runs]:
            for name, event in run.items():
                facts = event.get("args", {})
                kernel = kernels.setdefault(name, _Kernel(name, str(facts.get("op_name", "")), facts))
                kernel.times_us.append(float(event["dur"]) + 0.5)
        rounds_.append(list(kernels.values()))
    return rounds_


def _layers(events: list[list[list[_Kernel]]], graph: Nodes) -> dict[str, Layer]:
    """Groups kernels into layers, from all rounds: an If may take another branch in one of them."""
    first: dict[str, _Kernel] = {}
    for kernel in (kernel for event in events for kernels in event for kernel in kernels):
        first.setdefault(kernel.name, kernel)
    owners = owners_of([(kernel.name, kernel.op) for kernel in first.values()], graph)
    shape = (len(events), len(events[0]))
    times: dict[str, np.ndarray[Any, Any]] = {owner.name: np.zeros(shape) for owner, _ in owners.values()}
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
    layers: dict[str, Layer] = {}
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


def _middle_half(times: Sequence[float]) -> list[float]:
    """Sorted. Their mean varies less than that of all, and is finer than a median of whole microseconds."""
    ordered = sorted(times)
    cut = len(ordered) // 4
    return ordered[cut : len(ordered) - cut]


def _bytes(facts: Mapping[str, Any]) -> int:
    return sum(int(facts.get(key, 0)) for key in ("output_size", "parameter_size", "activation_size"))


def _macs(weight: tuple[int, ...], facts: Mapping[str, Any]) -> int:
    """Products of one run: the weight's size times the number of positions it is applied to."""
    shapes = [shape for output in facts.get("output_type_shape", ()) for shape in output.values()]
    if not weight or not shapes:
        return 0
    positions = math.prod(shapes[0][2:]) if len(weight) > 2 else math.prod(shapes[0][:-1])
    return math.prod(weight) * int(positions)


def owners_of(kernels: Sequence[tuple[str, str]], graph: Nodes) -> dict[str, tuple[Node, bool]]:
    """For each kernel (name, operator), in execution order: its layer's node, and if it is a conversion."""
    # A node without a name gets one from the runtime: its operator and its place.
    nodes = [
        node if node.name else replace(node, name=f"{node.op_type}_{at}")
        for at, node in enumerate(graph.nodes)
    ]
    makers = {output: node for node in nodes for output in node.outputs}
    # Some of the runtime's passes name a kernel after the node, others after its output tensor.
    by_name = {**makers, **{node.name: node for node in nodes}}
    own: dict[str, Optional[Node]] = {}
    for name, op in kernels:
        converts = op in _INWARD + _OUTWARD
        node = _named(name, by_name)
        if node is not None and op not in (node.op_type,) and _is_heavy(op) and not _is_heavy(node.op_type):
            node = _heavy_before(node, makers) or node
        if node is None and not converts:
            node = Node(_stripped(name), op, (), ())
        own[name] = node if not converts or (node is not None and node.op_type == op == "Transpose") else None
    owners: dict[str, tuple[Node, bool]] = {}
    names = [name for name, _ in kernels]
    ops = dict(kernels)
    for at, name in enumerate(names):
        node = own[name]
        if node is not None:
            owners[name] = (node, False)
            continue
        after = next((own[other] for other in names[at + 1 :] if own[other] is not None), None)
        before = next((own[other] for other in reversed(names[:at]) if own[other] is not None), None)
        near = (after or before) if ops[name] in _INWARD else (before or after)
        owners[name] = (near or Node(_stripped(name), ops[name], (), ()), True)
    return owners


def layer_name(node: Node) -> str:
    """A node's name without its operator: `layer1.0.conv1/Conv` is the layer `layer1.0.conv1`."""
    end = f"/{node.op_type}"
    return node.name[: -len(end)] if node.name.endswith(end) and len(node.name) > len(end) else node.name


def _named(kernel: str, by_name: Mapping[str, Node]) -> Optional[Node]:
    name = kernel[: -len("_kernel_time")] if kernel.endswith("_kernel_time") else kernel
    return next((by_name[each] for each in _shorter(name) if each in by_name), None)


def _stripped(kernel: str) -> str:
    return list(_shorter(kernel))[-1]


def _shorter(name: str) -> Iterator[str]:
    """A name, then with one affix less each time."""
    before = ""
    while name != before:
        yield name
        before, name = name, _AFFIXES.sub("", name, count=1)


def _is_heavy(op: str) -> bool:
    return any(heavy in op for heavy in ("Conv", "Gemm", "MatMul", "LSTM", "GRU", "RNN"))


def _heavy_before(node: Node, makers: Mapping[str, Node]) -> Optional[Node]:
    """The nearest weighted node among those that feed this one."""
    waiting, seen = [node], set()
    while waiting:
        for name in waiting.pop(0).inputs:
            maker = makers.get(name)
            if maker is None or maker.name in seen:
                continue
            if maker.op_type in HEAVY:
                return maker
            seen.add(maker.name)
            waiting.append(maker)
    return None


def labels_of(nodes: Sequence[Node]) -> dict[str, str]:
    """A layer's name for each node; where two nodes of one module share it, the weighted one gets it."""
    owners: dict[str, Node] = {}
    for node in sorted(nodes, key=lambda node: node.op_type not in HEAVY):
        owners.setdefault(layer_name(node), node)
    return {
        node.name: layer_name(node) if owners[layer_name(node)].name == node.name else node.name
        for node in nodes
    }
