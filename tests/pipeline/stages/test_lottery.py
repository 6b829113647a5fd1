from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.digits import Digits

from deadweight.pipeline.compression.masks import kept_share, load_masks
from deadweight.pipeline.stages.load import Load
from deadweight.pipeline.stages.lottery import Control, Lottery, stored
from deadweight.pipeline.stages.statistics import Statistics
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.errors import ModelError, RecipeError
from deadweight.targets.target import load_target

CONTROLS: tuple[Control, ...] = get_args(Control)


class PowerCutError(Exception):
    """Stands for a power cut."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Work:
    place = tmp_path_factory.mktemp("lottery")
    return Train(epochs=3, rewind_step=20)(
        Work(Digits(), load_target("x86-cpu"), place, networks=NetworkFiles())
    )


def ran(stage: Lottery, work: Work, place: Path) -> Work:
    return stage(dataclasses.replace(work, directory=place))


def size(work: Work, name: str) -> int:
    return sum(parameter.numel() for parameter in work.model(work.variant(name)).parameters())


def test_training_keeps_the_weights_of_the_start_and_of_a_step(trained: Work) -> None:
    torch.manual_seed(trained.seed)
    fresh = Digits().build_model().state_dict()
    first, early = stored(trained, 0), stored(trained, 20)
    last = trained.model().state_dict()
    assert all(torch.equal(first[name], fresh[name]) for name in fresh)
    assert all(not torch.equal(first[name], early[name]) for name in fresh)
    moved = [sum(float((one[name] - first[name]).norm()) for name in fresh) for one in (early, last)]
    assert moved[0] < moved[1]


def test_the_weights_of_a_step_are_those_of_a_training_that_ended_there(
    trained: Work, tmp_path: Path
) -> None:
    class Short(Digits):
        """Its training split ends after so many batches."""

        def batches(self, split: str, *, seed: int = 0):  # type: ignore[no-untyped-def]
            batches = list(super().batches(split, seed=seed))
            return batches[:4] if split == "train" else batches

    settings = Train(epochs=1, decay="none", keep="last", rewind_step=4)
    long = settings(Work(Digits(), load_target("x86-cpu"), tmp_path / "long", networks=NetworkFiles()))
    short = dataclasses.replace(settings, rewind_step=0)(
        Work(Short(), load_target("x86-cpu"), tmp_path / "short", networks=NetworkFiles())
    )
    found, wanted = stored(long, 4), short.model().state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_step_that_training_never_came_to_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Training ended before"):
        Train(epochs=1, rewind_step=10_000)(
            Work(Digits(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles())
        )


def test_each_round_takes_its_share_of_what_is_left(trained: Work, tmp_path: Path) -> None:
    work = ran(Lottery(rounds=3, share=0.4, epochs=1), trained, tmp_path)
    masks, pattern = load_masks(work.variant("ticket").path("masks"))
    assert pattern == "free"
    assert kept_share(masks) == pytest.approx(0.6**3, abs=0.002)
    weights = work.model(work.variant("ticket")).state_dict()
    assert all(not weights[name][~mask].any() for name, mask in masks.items())
    assert [word.split(":")[0] for word in work.log[-1].words] == ["round 1", "round 2", "round 3"]


@pytest.mark.parametrize("step", [0, 20])
def test_a_ticket_begins_with_the_very_weights_of_its_step(trained: Work, tmp_path: Path, step: int) -> None:
    stage = Lottery(rounds=2, share=0.5, epochs=0, rewind_step=step)
    work = ran(stage, trained, tmp_path)
    masks, _ = load_masks(work.variant("ticket").path("masks"))
    found, start = work.model(work.variant("ticket")).state_dict(), stored(trained, step)
    for name, value in start.items():
        assert torch.equal(found[name], value * masks[name] if name in masks else value)


def test_the_controls_differ_in_what_they_begin_with_and_in_nothing_else(
    trained: Work, tmp_path: Path
) -> None:
    work = ran(Lottery(rounds=2, share=0.5, epochs=0, controls=CONTROLS), trained, tmp_path)
    assert [(v.name, v.role) for v in work.variants][1:] == [
        ("ticket", "chain"),
        ("ticket_reinitialised", "control"),
        ("ticket_random", "control"),
        ("ticket_tuned_on", "control"),
    ]
    assert work.latest().name == "ticket"
    masks = {v.name: load_masks(v.path("masks"))[0] for v in work.variants[1:]}
    tensors = {v.name: work.model(v).state_dict() for v in work.variants}
    name, first = "0.weight", stored(trained, 0)["0.weight"]
    kept = masks["ticket"][name]
    for control in ("ticket_reinitialised", "ticket_tuned_on"):
        assert torch.equal(masks[control][name], kept)
    other = masks["ticket_random"][name]
    assert int(other.sum()) == int(kept.sum())
    assert not torch.equal(other, kept)
    assert torch.equal(tensors["ticket_random"][name], first * other)
    assert not torch.equal(tensors["ticket_reinitialised"][name], first * kept)
    assert not tensors["ticket_reinitialised"][name][~kept].any()
    # Nothing was trained, so the round before the last ended where it began: at its own start.
    assert torch.equal(tensors["ticket_tuned_on"][name], first * kept)


def test_what_is_tuned_on_begins_with_the_trained_weights(trained: Work, tmp_path: Path) -> None:
    stage = Lottery(rounds=1, share=0.5, epochs=0, controls=("tuned_on",))
    work = ran(stage, trained, tmp_path)
    masks, _ = load_masks(work.variant("ticket").path("masks"))
    tuned = work.model(work.variant("ticket_tuned_on")).state_dict()
    assert torch.equal(tuned["0.weight"], trained.model().state_dict()["0.weight"] * masks["0.weight"])
    chain = ran(dataclasses.replace(stage, tune_on=True, controls=()), trained, tmp_path / "chain")
    assert torch.equal(chain.model().state_dict()["0.weight"], tuned["0.weight"])


def test_neurons_are_rewound_too(trained: Work, tmp_path: Path) -> None:
    work = ran(Lottery(unit="neurons", rounds=2, share=0.5, epochs=0, controls=CONTROLS), trained, tmp_path)
    ticket, plan = work.variant("ticket"), work.plan(work.variant("ticket"))
    assert plan is not None
    assert {width.after for width in plan.widths.values()} == {24, 12}
    weights, first = work.model(ticket).state_dict(), stored(trained, 0)
    rows = {tuple(row.tolist()) for row in first["0.weight"]}
    assert all(tuple(row.tolist()) in rows for row in weights["0.weight"])
    assert len({size(work, v.name) for v in work.variants[1:]}) == 1
    assert size(work, "ticket") < size(work, "original")
    drawn = work.model(work.variant("ticket_random")).state_dict()["0.weight"]
    assert all(tuple(row.tolist()) in rows for row in drawn)
    assert not torch.equal(drawn, weights["0.weight"])
    fresh = work.model(work.variant("ticket_reinitialised")).state_dict()
    assert not any(tuple(row.tolist()) in rows for row in fresh["0.weight"])
    # As if drawn for a quarter of the inputs: with twice the deviation.
    wider = float(fresh["2.weight"].std() / first["2.weight"].std())
    assert wider == pytest.approx(2.0, rel=0.15)


def test_neurons_may_go_by_their_activations(trained: Work, tmp_path: Path) -> None:
    stage = Lottery(unit="neurons", rounds=1, share=0.5, epochs=1, criterion="activation")
    assert size(ran(stage, trained, tmp_path), "ticket") < size(trained, "original")


def test_tickets_of_half_the_weights_learn_what_the_whole_network_did(trained: Work, tmp_path: Path) -> None:
    work = ran(Lottery(rounds=1, share=0.5, controls=("random",)), trained, tmp_path)
    ticket, original = (float(done.words[0].split()[-1]) for done in (work.log[-1], trained.log[-1]))
    assert ticket > original - 0.05


def test_one_cut_by_a_threshold_leaves_what_is_above_it(trained: Work, tmp_path: Path) -> None:
    stage = Lottery(threshold=0.05, rounds=5, tune_on=True, epochs=0)
    work = ran(stage, trained, tmp_path)
    weights, whole = work.model().state_dict(), trained.model().state_dict()
    for name in ("0.weight", "2.weight", "4.weight"):
        assert torch.equal(weights[name] != 0, whole[name].abs() >= 0.05)
    assert len(work.log[-1].words) == 1


def test_a_threshold_that_keeps_nothing_is_an_error_with_the_largest_weight(
    trained: Work, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"threshold 9 keeps no weight of 0\.weight, 2\.weight, 4\.weight"):
        ran(Lottery(threshold=9.0), trained, tmp_path)


def test_a_network_that_was_loaded_has_no_start_to_go_back_to(trained: Work, tmp_path: Path) -> None:
    save_file(load_file(trained.latest().path("weights")), tmp_path / "own.safetensors")
    loaded = Load(str(tmp_path / "own.safetensors"))(
        Work(Digits(), load_target("x86-cpu"), tmp_path, networks=NetworkFiles())
    )
    with pytest.raises(RecipeError, match="initial weights to rewind to were not stored") as caught:
        ran(Lottery(), loaded, tmp_path)
    assert 'by the stage "train"' in caught.value.cure


def test_a_step_that_was_not_kept_is_an_error_that_names_those_that_were(
    trained: Work, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"weights of step 7 .* stored are those of step 0, 20") as caught:
        ran(Lottery(rewind_step=7), trained, tmp_path)
    assert "rewind_step = 7 in the stage train" in caught.value.cure


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(RecipeError, match="A threshold drops single weights"):
        Lottery(threshold=0.1, unit="neurons")
    with pytest.raises(RecipeError, match="A threshold drops single weights"):
        Lottery(threshold=0.1, shares={"head": 0.1})
    with pytest.raises(RecipeError, match="Shares by layer are local"):
        Lottery(scope="global", shares={"head": 0.1})


@pytest.mark.parametrize("unit", ["weights", "neurons"])
def test_rounds_that_were_cut_off_end_with_the_bits_of_those_that_were_not(
    trained: Work, tmp_path: Path, unit: str
) -> None:
    stage = Lottery(unit=unit, rounds=2, share=0.5, epochs=2)  # type: ignore[arg-type]
    whole = ran(stage, trained, tmp_path / "whole")
    calls = []

    def cut(done: int, total: int, what: str) -> None:
        calls.append(what)
        if calls.count("lottery: rewound") == 40:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        ran(stage, dataclasses.replace(trained, progress=cut), tmp_path / "cut")
    resumed = ran(stage, trained, tmp_path / "cut")
    assert whole.digest() == resumed.digest()


def test_statistics_before_it_do_no_harm(trained: Work, tmp_path: Path) -> None:
    work = Statistics()(dataclasses.replace(trained, directory=tmp_path))
    assert ran(Lottery(rounds=1, epochs=0), work, tmp_path).latest().name == "ticket"
