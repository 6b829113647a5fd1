from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cpu import exact_int8
from support.digits import Digits
from support.workloads import trained
from torch import Tensor

from deadweight.export.onnx_graph.graph import load
from deadweight.pipeline.quantization.candidates import validated
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.qat import Qat
from deadweight.pipeline.stages.quantize import Quantize
from deadweight.pipeline.training import checkpoint as on_disk
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.artifact import read_json
from deadweight.targets.errors import ArtifactError, ModelError, RecipeError, TargetError, WorkloadError
from deadweight.targets.target import load_target


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Work:
    place = tmp_path_factory.mktemp("float")
    work = Work(Digits(), load_target("x86-cpu"), place, networks=NetworkFiles())
    return Export()(work.with_model("original", trained(Digits())))


@pytest.fixture
def work(exported: Work, tmp_path: Path) -> Work:
    return dataclasses.replace(exported, directory=tmp_path)


@exact_int8
@pytest.mark.parametrize(("target", "integers"), [("x86-cpu", "uint8"), ("orin-nano-8gb", "int8")])
def test_the_file_is_in_the_dialect_of_the_target_and_scores_as_the_trained_graph_does(
    work: Work, target: str, integers: str
) -> None:
    done = Qat(epochs=2)(dataclasses.replace(work, target=load_target(target)))
    assert done.latest("onnx").name == "qat"
    said = done.log[-1].words
    assert said[0].startswith("2 epochs, validation accuracy 0.9")
    in_graph, in_file = (
        float(said[1].partition(f" {place}")[0].split()[-1]) for place in ("in the tr", "in its")
    )
    assert abs(in_graph - in_file) <= 0.0025  # one of 400
    assert "labels flip" in said[2]
    model = load(done.variant("qat").path("onnx"))
    kinds = {model.types[n.output[0]].elem_type for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert kinds == {2 if integers == "uint8" else 3}
    assert read_json(done.artifacts["qat"].checked())["words"][0].startswith("qat: validation accuracy")
    assert not (work.directory / "trials").exists()


def test_training_recovers_what_rounding_to_two_bits_loses(work: Work) -> None:
    done = Qat(epochs=4, weight_bits=2, learning_rate=1e-3)(work)
    figures = [float(word.rstrip(",")) for word in done.log[-1].words[1].split() if word[:2] == "0."]
    in_float, without, in_graph, in_file = figures
    assert without < in_float - 0.02
    assert in_file > without + 0.6 * (in_float - without)
    assert abs(in_graph - in_file) <= 0.0025
    assert "weights of 2 bits are simulated" in "; ".join(done.log[-1].words)
    weight = next(
        value
        for tensor in load(done.variant("qat").path("onnx")).graph.initializer
        if tensor.name.endswith("_int8")
        and (value := load(done.variant("qat").path("onnx")).index.value(tensor.name)) is not None
    )
    assert abs(weight).max() == 1


def test_it_starts_from_the_float_network_also_behind_quantize(work: Work) -> None:
    work = Quantize()(work)
    done = Qat(epochs=1, scales="fixed")(work)
    assert [one.name for one in done.variants] == ["original", "int8", "qat"]
    score = validated(work, done.variant("qat").path("onnx"))
    assert score > 0.9


def test_a_killed_training_goes_on_and_ends_with_the_same_file(work: Work) -> None:
    whole = Qat(epochs=3)(dataclasses.replace(work, directory=work.directory / "whole"))

    def stop(done: int, total: int, what: str) -> None:
        if what == "qat" and done > 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Qat(epochs=3)(dataclasses.replace(work, progress=stop))
    assert len(on_disk.reached(work.directory / "checkpoint.safetensors").scores) == 1
    resumed = Qat(epochs=3)(work)
    assert "(1 from the interrupted run)" in resumed.log[-1].words[0]
    assert resumed.variant("qat").files["onnx"].sha256 == whole.variant("qat").files["onnx"].sha256


class Diverging(Digits):
    """The loss is NaN from a step on."""

    def __init__(self, step: int) -> None:
        self.step, self.calls = step, 0

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        self.calls += 1
        return super().loss(outputs, batch) * (float("nan") if self.calls >= self.step else 1.0)


def test_a_loss_that_turns_nan_keeps_the_best_epoch_before_and_names_a_scale(work: Work) -> None:
    done = Qat(epochs=3)(dataclasses.replace(work, workload=Diverging(20)))  # in the second epoch of 16 steps
    said = "; ".join(done.log[-1].words)
    assert "the loss is nan in epoch 2, step 4. the scale that moved most is that of " in said
    assert "the best of the 1 epochs before it is kept" in said
    assert done.latest("onnx").name == "qat"


def test_a_loss_that_is_nan_in_the_first_epoch_is_an_error_with_the_scale(work: Work) -> None:
    with pytest.raises(ModelError, match=r"in epoch 1, step 3\. The scale that moved most") as caught:
        Qat(epochs=3)(dataclasses.replace(work, workload=Diverging(3)))
    assert 'scales = "fixed"' in caught.value.cure


class WithoutTraining(Digits):
    """Has calibration samples without labels, and none to train on."""

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        for batch in super().batches(split, seed=seed) if split != "train" else ():
            yield {"pixels": batch["pixels"]} if split == "calibration" else batch


def test_without_a_training_set_distillation_on_calibration_data_is_offered_and_works(work: Work) -> None:
    work = dataclasses.replace(work, workload=WithoutTraining())
    with pytest.raises(WorkloadError, match="there is nothing to train on") as caught:
        Qat()(work)
    assert 'data = "calibration" and share = 1' in caught.value.cure
    done = Qat(epochs=2, data="calibration", share=1.0, weight_bits=4)(work)
    assert done.latest("onnx").name == "qat"
    with pytest.raises(RecipeError, match="no labels for the rest of the loss"):
        Qat(data="calibration", share=0.5)


def test_several_processes_and_a_checkpoint_of_another_training_are_refused_with_the_cure(
    work: Work,
) -> None:
    with pytest.raises(RecipeError, match="one process, not 2"):
        Qat(processes=2)
    model = torch.nn.Linear(2, 2)
    reached = on_disk.Reached((0.5,), 0, model.state_dict(), 1)
    on_disk.save(
        work.directory / "checkpoint.safetensors", model, torch.optim.Adam(model.parameters()), reached
    )
    with pytest.raises(ArtifactError, match="is damaged, missing or of another kind") as caught:
        Qat()(work)
    assert "Delete it" in caught.value.cure


def test_a_calibration_cache_has_the_learnt_scales(work: Work) -> None:
    with pytest.raises(TargetError):
        Qat(cache_batch=1).check_target(load_target("x86-cpu"))
    stage: Any = Qat(epochs=1, cache_batch=4)
    stage.check_target(load_target("orin-nano-8gb"))
    done = stage(dataclasses.replace(work, target=load_target("orin-nano-8gb")))
    lines = done.variant("qat").path("cache").read_text().splitlines()
    scales = dict(line.split(": ", 1) for line in lines[1:])
    model = load(done.variant("qat").path("onnx"))
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    for node in pairs:
        value = model.index.value(node.input[1])
        assert value is not None
        assert scales[node.input[0]] == f"{int(value.view('uint32')):x}"
    assert len(scales) > len(pairs) > 0
    shape = load(done.variant("qat").path("float")).graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_value == 4
