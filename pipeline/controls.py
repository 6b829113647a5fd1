"""The stage "controls": what a sceptic would try instead of a criterion.

Two networks of the very widths that pruning chose: one whose removed neurons were drawn at random and which
then went through the same stages, and one that was trained from scratch for as many epochs as all of the
chain together (Liu et al. 2019, "Rethinking the value of network pruning"). If they do as well, the
criterion earned nothing, and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from .work import Work


@dataclass(frozen=True)
class Controls:
    """Adds the networks "random" and "scratch", marked as controls.

    Attributes:
        random: whether random neurons of the same widths are tried.
        scratch: whether the small network is trained from scratch.
    """

    random: bool = True
    scratch: bool = True

    def __call__(self, work: Work) -> Work:
        result = work
        if self.random:
            result = result.with_variant(self._random(work))
        if self.scratch:
            result = result.with_variant(self._scratch(work))
        return result.logged("controls", self)
