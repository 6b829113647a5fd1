"""What `collect` says of a network agrees with what hooks on the user's own modules see."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import nets, sequence_nets
from support.digits import Digits
from torch import Tensor, nn

from deadweight.pipeline.importance.activations import ActivationStatistics, UnitStatistics, collect
from deadweight.pipeline.pruning.groups import Groups
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.stages.statistics import Statistics
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.artifact import sha256_of
from deadweight.targets.errors import ArtifactError, ModelError, WorkloadError
from deadweight.targets.target import load_target


def batches(*shape: int, sizes: tuple[int, ...] = (5, 1, 16, 3)) -> Iterator[dict[str, Tensor]]:
    for seed, size in enumerate(sizes):
        yield {"image": nets.image(size, *shape, seed=seed), "label": torch.zeros(size)}


def whole(*shape: int) -> Tensor:
    return torch.cat([batch["image"] for batch in batches(*shape)])


def assert_agree(found: UnitStatistics, values: Tensor) -> None:
    """`values`: units by everything else."""
    values = values.double()
    torch.testing.assert_close(found.mean, values.mean(1), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.std, values.std(1, correction=0), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.mean_abs, values.abs().mean(1), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.zero_share, (values == 0).double().mean(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.maximum, values.amax(1), rtol=1e-5, atol=1e-9)
    assert found.count.tolist() == [values.shape[1]] * len(values)


def traced(model: nn.Module, *shape: int) -> Groups:
    return trace(nets.lively(model), {"image": nets.image(2, *shape)})


def test_neurons_are_seen_after_their_activation() -> None:
    model = nets.lively(nets.Mlp())
    assert isinstance(model, nets.Mlp)
    found = collect(trace(model, {"image": nets.image(2, 16)}), batches(16))
    hidden = F.relu(model.fc1(whole(16)))
    assert_agree(found.of("fc1"), hidden.T)
    assert_agree(found.of("fc2"), F.relu(model.fc2(hidden)).T)
    assert found.names == ("fc1", "fc2")


def test_channels_are_seen_after_norm_and_activation_over_all_positions() -> None:
    model = nets.lively(nets.ResidualCnn())
    assert isinstance(model, nets.ResidualCnn)
    found = collect(trace(model, {"image": nets.image(2, 3, 8, 8)}), batches(3, 8, 8))
    stem = F.relu(model.norm(model.stem(whole(3, 8, 8))))
    assert_agree(found.of("stem"), stem.transpose(0, 1).flatten(1))
    branch = F.relu(model.norm1(model.conv1(stem)))
    assert_agree(found.of("conv1"), branch.transpose(0, 1).flatten(1))


def test_channels_that_a_linear_layer_reads_flattened_get_all_their_positions() -> None:
    model = nets.lively(nets.Flattened())
    assert isinstance(model, nets.Flattened)
    found = collect(trace(model, {"image": nets.image(2, 1, 8, 8)}), batches(1, 8, 8))
    read = F.max_pool2d(F.relu(model.conv2(F.relu(model.conv1(whole(1, 8, 8))))), 2)
    assert_agree(found.of("conv2"), read.transpose(0, 1).flatten(1))


def test_branches_of_a_concat_get_their_own_part_and_the_most_alive_of_their_reads() -> None:
    model = nets.lively(nets.Concatenated())
    assert isinstance(model, nets.Concatenated)
    found = collect(trace(model, {"image": nets.image(2, 2, 8, 8)}), batches(2, 8, 8))
    a = model.a(whole(2, 8, 8))
    joined = F.relu(model.norm(torch.cat([a, model.b(F.relu(a))], 1))).transpose(0, 1).flatten(1).double()
    early = F.relu(a).transpose(0, 1).flatten(1).double()
    assert_agree(found.of("b"), joined[6:])
    both = torch.stack((early, joined[:6]))
    units = found.of("a")
    torch.testing.assert_close(units.mean, both.mean(2).amax(0), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(units.std, both.std(2, correction=0).amax(0), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(units.zero_share, (both == 0).double().mean(2).amin(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(units.maximum, both.amax(2).amax(0), rtol=1e-5, atol=1e-9)


def test_of_several_reads_the_mean_farthest_from_zero_keeps_its_sign() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, image: Tensor) -> Tensor:
            x = self.fc(image)
            out: Tensor = self.a(F.relu(x)) + self.b(x - 9)
            return out

    found = collect(traced(Twice(), 4), batches(4)).of("fc")
    assert bool((found.mean < -5).all())
    assert bool((found.maximum > 0).any())


def test_a_channel_that_never_fires_is_found() -> None:
    model = nets.lively(nets.ResidualCnn())
    assert isinstance(model, nets.ResidualCnn)
    with torch.no_grad():
        model.norm1.weight[3], model.norm1.bias[3] = 0.0, -1.0
    units = collect(trace(model, {"image": nets.image(2, 3, 8, 8)}), batches(3, 8, 8)).of("conv1")
    figures = [units.mean, units.std, units.mean_abs, units.maximum, 1 - units.zero_share]
    assert [float(figure[3]) for figure in figures] == [0.0] * 5
    assert bool((units.zero_share < 1).any())


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (sequence_nets.Vit(), {"image": nets.image(6, 3, 8, 8)}),
        (sequence_nets.Llama(), {"tokens": torch.arange(42).view(6, 7) % 30}),
    ],
    ids=["heads, their features and tokens", "an embedding, grouped heads"],
)
def test_every_group_of_a_transformer_has_figures_for_all_its_units(
    model: nn.Module, data: dict[str, Tensor]
) -> None:
    groups = trace(nets.lively(model), {name: value[:2] for name, value in data.items()})
    found = collect(groups, [data])
    assert found.names == tuple(group.name for group in groups)
    for group in groups:
        units = found.of(group.name)
        assert len(units.std) == group.size
        assert bool((units.std > 0).all())
        assert bool((units.count > 0).all())


def test_the_network_and_its_graph_stay_as_they_are() -> None:
    groups = traced(nets.ResidualCnn(), 3, 8, 8)
    before = str(groups.graph.graph), groups.graph(nets.image(2, 3, 8, 8))
    collect(groups, batches(3, 8, 8))
    assert str(groups.graph.graph) == before[0]
    assert torch.equal(groups.graph(nets.image(2, 3, 8, 8))[0], before[1][0])


def test_how_the_data_is_cut_into_batches_does_not_matter() -> None:
    groups = traced(nets.ResidualCnn(), 3, 8, 8)
    one = collect(groups, [{"image": whole(3, 8, 8)}])
    many = collect(groups, batches(3, 8, 8, sizes=(5, 1, 16, 3)))
    for name in one.names:
        torch.testing.assert_close(many.of(name).std, one.of(name).std, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(many.of(name).mean, one.of(name).mean, rtol=1e-5, atol=1e-9)


def test_a_hundred_batches_are_merged_as_one() -> None:
    model = nets.lively(nets.Mlp())
    assert isinstance(model, nets.Mlp)
    data = nets.image(100, 16)
    found = collect(trace(model, {"image": nets.image(2, 16)}), ({"image": row[None]} for row in data))
    assert_agree(found.of("fc1"), F.relu(model.fc1(data)).T)


def test_progress_is_reported_after_each_batch() -> None:
    calls: list[int] = []
    collect(traced(nets.Mlp(), 16), batches(16), progress=calls.append)
    assert calls == [1, 2, 3, 4]


class FixedBatch(nn.Module):
    """The example's batch size is written into forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.relu(self.fc1(image)).view(2, 6))
        return out


def test_a_network_of_a_fixed_batch_gets_its_data_in_pieces_of_it() -> None:
    model = nets.lively(FixedBatch())
    groups = trace(model, {"image": nets.image(2, 4)})
    found = collect(groups, batches(4, sizes=(4, 2, 6)))
    assert found.of("fc1").count.tolist() == [12] * 6
    with pytest.raises(WorkloadError, match="has 3 samples; this network takes 2 at a time"):
        collect(groups, batches(4, sizes=(3,)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_activation_that_is_no_number_names_the_group(bad: float) -> None:
    model = nets.lively(nets.Mlp())
    assert isinstance(model, nets.Mlp)
    with torch.no_grad():
        model.fc2.bias[1] = bad
    groups = trace(model, {"image": nets.image(2, 16)})
    with pytest.raises(
        ModelError, match=r"activations of fc2 are NaN or infinite in 1 of 8 places"
    ) as caught:
        collect(groups, batches(16))
    assert "NaN in the weights" in caught.value.cure


def test_of_two_groups_in_one_value_only_the_bad_one_is_named() -> None:
    model = nets.lively(nets.Concatenated())
    assert isinstance(model, nets.Concatenated)
    with torch.no_grad():
        model.b.weight[0] = torch.nan
    with pytest.raises(ModelError, match="activations of b are NaN"):
        collect(trace(model, {"image": nets.image(2, 2, 8, 8)}), batches(2, 8, 8))


@pytest.mark.parametrize("sizes", [(), (0,), (0, 0)])
def test_no_sample_is_no_statistics(sizes: tuple[int, ...]) -> None:
    with pytest.raises(WorkloadError, match="no sample to collect statistics from"):
        collect(traced(nets.Mlp(), 16), batches(16, sizes=sizes))


def test_a_batch_without_an_input_is_named() -> None:
    with pytest.raises(WorkloadError, match=r"Batch 1 lacks the inputs \['image'\]; it has \['picture'\]"):
        collect(traced(nets.Mlp(), 16), [{"picture": nets.image(2, 16)}])


def test_a_batch_of_another_shape_is_named() -> None:
    data = [{"image": nets.image(2, 16)}, {"image": nets.image(2, 15)}]
    with pytest.raises(WorkloadError, match=r"Batch 2, of shapes \[\(2, 15\)\], does not run"):
        collect(traced(nets.Mlp(), 16), data)


def test_saved_statistics_come_back_whole(tmp_path: Path) -> None:
    found = collect(traced(nets.ResidualCnn(), 3, 8, 8), batches(3, 8, 8))
    found.save(tmp_path / "s.safetensors")
    back = ActivationStatistics.load(tmp_path / "s.safetensors")
    assert (back.names, back.measured, back.shifted) == (found.names, found.measured, found.shifted)
    for name in found.names:
        for field in ("mean", "std", "mean_abs", "zero_share", "maximum", "count"):
            assert torch.equal(getattr(back.of(name), field), getattr(found.of(name), field))


COLLECT_AND_SAVE = """
import sys, torch
from support import nets
from deadweight.pipeline.importance.activations import collect
from deadweight.pipeline.pruning.trace import trace
groups = trace(nets.lively(nets.ResidualCnn()), {"image": nets.image(2, 3, 8, 8)})
collect(groups, [{"image": nets.image(7, 3, 8, 8, seed=s)} for s in range(20)]).save(sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file, seed in zip(files, "12", strict=True):
        command = [sys.executable, "-c", COLLECT_AND_SAVE, str(file)]
        subprocess.run(
            command,
            check=True,
            cwd=Path(__file__).parents[3],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "tests"},
        )
    assert sha256_of(files[0]) == sha256_of(files[1])


def test_collecting_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    groups = traced(nets.ResidualCnn(), 3, 8, 8)
    for name in "ab":
        collect(groups, batches(3, 8, 8)).save(tmp_path / name)
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    collect(traced(nets.Mlp(), 16), batches(16)).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match="damaged"):
        ActivationStatistics.load(path)
    with pytest.raises(ArtifactError, match="missing"):
        ActivationStatistics.load(tmp_path / "nothing")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match="of another kind: 'statistics'"):
        ActivationStatistics.load(tmp_path / "w.safetensors")


def test_a_group_without_statistics_is_named() -> None:
    found = collect(traced(nets.Mlp(), 16), batches(16))
    with pytest.raises(ModelError, match='no statistics of the group "fc9"; there are: fc1, fc2'):
        found.of("fc9")


def test_the_stage_leaves_an_artifact_for_pruning(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    start = Work(
        Digits(),
        load_target("x86-cpu"),
        tmp_path,
        progress=lambda done, of, what: seen.append((done, of, what)),
        networks=NetworkFiles(),
    )
    work = Statistics()(start.with_model("original", Digits().build_model()))
    found = ActivationStatistics.load(work.artifacts["statistics"].checked())
    assert found.names
    assert work.log[-1].stage == "statistics"
    assert f"in {len(found.names)} groups" in work.log[-1].words[0]
    assert seen[-1] == (1, 1, "statistics")
