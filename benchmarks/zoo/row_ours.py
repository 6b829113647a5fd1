"""One row of the zoo: a network is halved by deadweight, and everything that is promised of it is tried.

    python benchmarks/zoo/row_ours.py NAME [CHECK ...]     prints the row as JSON, without these checks

Weights and statistics are made lively first: whatever starts at zero or one (batch norm, layer scale) would
hide mistakes. Errors are relative to how far the outputs move when the input is another one. Costs are CPU
time on one thread, over one forward pass of one sample; torch.export's own time is taken off.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.zoo.forty import ALSO, FORTY
from benchmarks.zoo.further_networks import EVERY
from benchmarks.zoo.measure import (
    batch_error,
    exporting,
    floats,
    forward_bytes,
    forward_pass_s,
    lively,
    own_bytes,
    relative,
    size_of,
)
from benchmarks.zoo.networks import Network
from benchmarks.zoo.value_judge import Judged, UnjudgedError, judge, make_distinct
from benchmarks.zoo.wide_judge import gradients, other_sizes, pickled
from deadweight.export.opened import tensors_of
from deadweight.pipeline.pruning.contexts import uncollected
from deadweight.pipeline.pruning.groups import BLOCKS, Groups, choose
from deadweight.pipeline.pruning.plan import Plan, plan_of
from deadweight.pipeline.pruning.saved import load_pruned, save_pruned
from deadweight.pipeline.pruning.surgery import apply, tried_out
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.trial import Trial
from deadweight.pipeline.pruning.verify import Proof, verify
from deadweight.targets.errors import DeadweightError, ModelError

Row = dict[str, Any]
RATIO = 0.5


def row(network: Network, skipped: Collection[str] = ()) -> Row:
    """All columns of a network; "refused" where the answer was no, "failed" where something broke.

    Args:
        skipped: checks that are left out; "memory" is one too.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = lively(network)
    make_distinct(model)
    example = network.example()
    found: Row = {"parameters": size_of(model)}
    with torch.no_grad():
        here, there = (floats(model(*network.example(seed=seed).values())) for seed in (1, 5))
    found["forward_s"] = forward_s = forward_pass_s(model, network)
    try:
        with exporting() as beside:
            started = time.process_time()
            groups = trace(model, example)
            traced, captures = time.process_time(), len(beside.seconds)
            scores = _drawn(groups, 3)
            plan = choose(groups, _channels(groups, scores), ratio=RATIO)
            small, trial = tried_out(model, plan, groups)
            ended = time.process_time()
        if "memory" not in skipped:
            with exporting(memory=True) as again:  # the first of a process also loads what any network needs
                apply(model, plan, trace(model, example))
                found["peak_bytes"] = again.most()
        found["whole_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found["own_bytes"], found["forward_bytes"] = own_bytes(model), forward_bytes(model, example)
    except DeadweightError as error:
        return found | {"refused": str(error)}
    found["export_s"] = sum(beside.seconds)
    found["trace_s"], found["surgery_s"] = traced - started, ended - traced
    found["trace_export_s"] = sum(beside.seconds[:captures])
    found["first_s"] = ended - started
    found["cost"] = (ended - started - found["export_s"]) / forward_s
    done = plan_of(small)
    assert done is not None
    asked, reasons = _asked(model, groups)
    found |= {
        "form": done.form,
        "why": done.reason,
        "groups": len(groups),
        "prunable": _prunable(model, groups) / found["parameters"],
        "kept": size_of(small) / found["parameters"],
        "kept_over_asked": size_of(small) / asked,
        "frozen": reasons,
        "batch": groups.batch,
    }
    pruned = Pruned(network, model, example, groups, scores, plan, small, trial, _scale(here, there), found)
    for name in (one for one in CHECKS if one not in skipped):
        started = time.process_time()
        try:
            found[name] = getattr(pruned, name)()
        except Exception as error:  # a row says what broke and goes on
            found[name] = None
            found.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"[:600]
        found.setdefault("seconds", {})[name] = round(time.process_time() - started, 1)
    return found


@dataclass
class Pruned:
    """A network and the half of it that is left; each method is a column.

    Attributes:
        scale: how much larger the outputs are than what they move by when the input is another one.
        seen: what the independent judge found, or None.
    """

    network: Network
    model: nn.Module
    example: Mapping[str, Any]
    groups: Groups
    scores: Mapping[str, Tensor]
    plan: Plan
    small: nn.Module
    trial: Trial
    scale: float
    found: Row
    seen: Judged | None = None

    def error(self) -> float:
        outcome = verify(self.model, self.small, self.plan, self.groups)
        self.found["changed_by"] = list(outcome.function_changed_by)[:3]
        return outcome.max_relative_error * self.scale

    def judged(self) -> str:
        """What the judge of the rival's rows says, who knows nothing of plans; it needs distinct values."""
        try:
            self.seen = judge(self.model, self.small, self.network)
        except UnjudgedError as error:
            return f"unjudged: {error}"
        self.found["judged_error"] = self.seen.error
        return self.seen.verdict

    def gradients(self) -> float | str | None:
        return None if self.seen is None else gradients(self.seen, self.network, training=False)

    def gradients_training(self) -> float | str | None:
        return None if self.seen is None else gradients(self.seen, self.network, training=True)

    def sizes(self) -> dict[str, float | str] | None:
        return None if self.seen is None else other_sizes(self.seen, self.model, self.network)

    def pickle(self) -> bool | str:
        return pickled(self.model, self.small, dict(self.example))

    def second(self) -> str:
        """What the same judge says when the pruned network is pruned again, by a fifth."""
        with exporting() as beside:
            started = time.process_time()
            groups = trace(self.small, self.groups)
            plan = choose(groups, _channels(groups, _drawn(groups, 4)), ratio=0.2)
            smaller = apply(self.small, plan, groups)
            self.found["second_s"] = time.process_time() - started
        self.found["second_export_s"] = sum(beside.seconds)
        try:
            return judge(self.model, smaller, self.network).verdict
        except UnjudgedError as error:
            return f"unjudged: {error}"

    def other_batch(self) -> float | str:
        if self.groups.batch is not None and self.found["form"] == "graph":
            return f"fixed at {self.groups.batch}"
        return batch_error(self.small, self.network)

    def disk(self) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            save_pruned(folder, self.small, self.plan, self.example)
            loaded = load_pruned(self.network.build, folder).eval()
        inputs = self.example.values()
        with torch.no_grad():
            one, other = floats(self.small(*inputs)), floats(loaded(*inputs))
        if not all(torch.equal(a, b) for a, b in zip(one, other, strict=True)):
            raise ValueError("outputs of the loaded network differ in their bits")
        return True

    def onnx(self) -> float:
        return _onnx(self.small, self.example, self.found)

    def parts(self) -> dict[str, float]:
        """The parts of a cut and of the wide proof, in forward passes, without torch.export's own time.

        As in `proven`, surgery has compared the outputs; `verify` does it alone.
        """
        done = plan_of(self.small) or self.plan  # less may have gone than was asked
        proof = Proof(self.model, self.small, done, self.groups, self.trial)
        steps: dict[str, Callable[[], Any]] = {
            "outputs": lambda: Proof(self.model, self.small, done, self.groups).outputs,
            "sizes": proof.sizes,  # first: it finds the smallest inputs, as in `verify`
            "gradients": proof.gradients,
            "pickled": proof.pickled,
            "saved": proof.saved,
        }
        found, said = {}, []
        for name, step in steps.items():
            with exporting() as beside, uncollected():  # as in `verify`
                started = time.process_time()
                said.append(str(step()))
                found[name] = time.process_time() - started - sum(beside.seconds)
        self.found["said"] = said
        row = self.found
        found["trace"] = row["trace_s"] - row["trace_export_s"]
        found["surgery"] = row["surgery_s"] - (row["export_s"] - row["trace_export_s"])
        return {name: seconds / row["forward_s"] for name, seconds in found.items()}

    def heads_too(self) -> str:
        """Heads and blocks of grouped convolutions as well: only whether it is right, in whatever form."""
        if not any(one.kind in BLOCKS for one in self.groups):
            return "none"
        small = apply(self.model, choose(self.groups, self.scores, ratio=RATIO), self.groups)
        done = plan_of(small)
        assert done is not None
        return f"{done.form} {size_of(small) / size_of(self.model):.2f}"

    def trains(self) -> bool:
        return trains(self.model, self.small, self.network)


# The last one changes the networks.
CHECKS = (
    *("error", "judged", "gradients", "gradients_training", "sizes", "pickle", "second"),
    *("parts", "other_batch", "disk", "onnx", "heads_too", "trains"),
)


def _drawn(groups: Groups, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {one.name: torch.rand(one.size, generator=generator) for one in groups}


def _channels(groups: Groups, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {one.name: scores[one.name] for one in groups if one.kind not in BLOCKS}


def _scale(here: list[Tensor], there: list[Tensor]) -> float:
    pairs = [(a, b) for a, b in zip(here, there, strict=True) if a.shape == b.shape and a.numel()]
    return max(float(a.abs().max() / (a - b).abs().max().clamp_min(1e-30)) for a, b in pairs)


def _onnx(small: nn.Module, example: Mapping[str, Tensor], found: Row) -> float:
    import onnxruntime

    from deadweight.export.to_onnx import to_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.onnx"
        found["opset"] = 17
        try:
            to_onnx(small, example, path)
        except ModelError as error:
            if "Opset 17 cannot say" not in str(error):
                raise
            found["opset"] = 18
            to_onnx(small, example, path, opset=18)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options)
        written = session.run(None, {name: value.numpy() for name, value in example.items()})
    with torch.no_grad():
        expected = pytree.tree_leaves(small(*example.values()))
    pairs = zip((one for one in expected if isinstance(one, Tensor)), written, strict=True)
    return max(relative(one, torch.from_numpy(np.asarray(other))) for one, other in pairs)


def trains(model: nn.Module, small: nn.Module, network: Network) -> bool:
    """One step of SGD; every parameter that gets a gradient in the original's class gets one here."""
    example = network.example(4 if len(network.shape) < 4 else 2, seed=6)
    reached = []
    for net in (model, small):
        torch.manual_seed(0)  # some drop whole layers at random
        np.random.seed(0)
        net.train()
        outputs = [one for one in pytree.tree_leaves(net(*example.values())) if isinstance(one, Tensor)]
        outputs = [one for one in outputs if one.requires_grad]
        torch.stack([one.square().mean() for one in outputs]).sum().backward()  # type: ignore[no-untyped-call]
        reached.append({name for name, one in net.named_parameters() if one.grad is not None})
        net.eval()
    if missing := reached[0] - reached[1]:
        raise ValueError(f"no gradient for {sorted(missing)[:5]}")
    before = [one.detach().clone() for one in small.parameters()]
    torch.optim.SGD(small.parameters(), lr=1e-3).step()
    moved = sum(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))
    if not moved:
        raise ValueError("no parameter moved")
    return True


def _asked(model: nn.Module, groups: Groups) -> tuple[float, list[str]]:
    """Parameters that are left when every axis that can be halved is; and in words, which could not be.

    An axis counts as one that can not if it is a network's input or output, the rows of an embedding, or
    slides (a kernel). Everything else that is left whole counts against us.
    """
    embeddings = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    solution, slots = groups.tracing.solution, groups.tracing.slots
    out = [cls for cls, cause in solution.causes.items() if cause.operator == "output"]
    given = tensors_of(groups.example)
    inputs = {one.shape[1 if one.dim() > 3 else -1] for one in given}
    asked, first = 0.0, True
    for name, parameter in model.named_parameters():
        share = 1.0
        for axis, size in enumerate(parameter.shape[:2]):
            entry = axis == 1 and size in inputs and (first or parameter.dim() > 3)
            if size == 1 or entry or (axis == 0 and name in embeddings):
                continue
            vector = slots.get((name, axis))
            whole = (
                0.0
                if vector is None
                else float(torch.isin(solution.of[vector], torch.tensor(out)).float().mean())
            )
            share *= whole + (1 - whole) * RATIO
        first = first and parameter.dim() < 2
        asked += parameter.numel() * share
    lost: dict[str, int] = {}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for one in groups.frozen:
        if one.operator != "output" and one.parameter in sizes:
            reason = f"{one.operator}: {one.reason} ({one.line})"
            lost[reason] = lost.get(reason, 0) + sizes[one.parameter]
    worst = sorted(lost, key=lambda reason: -lost[reason])
    return asked, [f"{lost[reason]:,} parameters: {reason}" for reason in worst[:5]]


def _prunable(model: nn.Module, groups: Groups) -> int:
    """Parameters from which some group can take something."""
    touched = {piece.parameter for group in groups for piece in group.slices}
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name in touched)


def main() -> None:
    """Prints the row of the network that is named."""
    network = next(one for one in (*EVERY, *FORTY, *ALSO) if one.name == sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):
        found = row(network, sys.argv[2:])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
