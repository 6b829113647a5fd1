"""A criterion of the user's own: ten lines in a file beside the recipe, named by its dotted path."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from support import digits
from support.digits import Digits

from deadweight.pipeline.recipe import read_recipe
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work

CRITERION = """\
import torch


def outgoing(group, context):
    scores = torch.zeros(group.size)
    for piece in group.slices:
        if piece.role == "consumer":  # the weights that read the group's units
            weights = context.weights(piece.parameter).movedim(piece.axis, 0).flatten(1)
            scores.index_add_(0, piece.units, weights.abs().sum(1))
    return scores  # the highest stay
"""
RECIPE = f"""
workload = "{digits.__file__}:Digits"
[[stages]]
stage = "prune"
ratio = 0.5
criterion = "own_criterion.outgoing"
"""


def test_ten_lines_beside_the_recipe_choose_the_neurons(tmp_path: Path) -> None:
    assert len(CRITERION.splitlines()) == 10
    (tmp_path / "own_criterion.py").write_text(CRITERION)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    recipe = read_recipe(tmp_path / "recipe.toml")
    work = Work(Digits(), recipe.target, tmp_path, networks=NetworkFiles()).with_model(
        "original", Digits().build_model()
    )
    model = work.model()
    result = recipe.stages[0].stage(dataclasses.replace(work, directory=tmp_path / "pruned"))
    plan = result.plan(result.latest())
    assert plan is not None
    weights = dict(model.named_parameters())["2.weight"].detach().abs().sum(0)
    assert set(plan.removed["0"]) == set(weights.argsort()[:48].tolist())
