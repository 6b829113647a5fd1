"""The stage "prune": neurons whose activations stay near zero are taken out for real.

What is removed follows from the statistics of the stage "statistics" and either two thresholds (a neuron
goes if its mean *and* its standard deviation are at or below them: it is silent, and constantly so) or a
ratio with a criterion. The result is a smaller dense network, and it is proven to be the old one without
those neurons before it is handed on.
"""

from __future__ import annotations

from dataclasses import dataclass

from .surgery import apply
from .trace import trace
from .verify import verify
from .work import Work
from .workload import example_batch


@dataclass(frozen=True)
class Prune:
    """Removes neurons from the newest network; the result is the network "pruned".

    Attributes:
        mean, std: thresholds on a neuron's activations, in their own units; both must be given, or none.
        ratio: instead of thresholds: the share of every group's neurons to remove, 0 to 1.
        criterion: with a ratio, what orders the neurons: a function of `importance`, or the dotted path
            of the user's own.
        align: whether widths are rounded up to what the target's kernels like.
    """

    mean: float | None = None
    std: float | None = None
    ratio: float | None = None
    criterion: str = "activation"
    align: bool = True

    def __call__(self, work: Work) -> Work:
        model = work.model()
        example = example_batch(work.workload)
        work.progress(0, 3, "prune: trace")
        groups = trace(model, example)
        plan = self._plan(groups, work)
        work.progress(1, 3, "prune: cut")
        small = apply(model, plan, groups)
        work.progress(2, 3, "prune: verify")
        verification = verify(model, small, plan, groups)
        work.progress(3, 3, "prune")
        return work.with_model("pruned", small, plan=plan).logged("prune", self, *_words(plan, verification))
