"""Engines as TensorRT exports them: two of 8.x that NVIDIA published, and the later forms field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deadweight.targets.engines.content import engine_of, profile_of, read_engine, runs_of, timed
from deadweight.targets.errors import ArtifactError

EXPORTS = Path(__file__).parent / "exports"


def layer(name: str, type_: str = "CaskConvolution", **more: Any) -> dict[str, Any]:
    return {"Name": name, "LayerType": type_, **more}


def test_a_published_int8_engine_is_read_whole() -> None:
    engine = read_engine(
        EXPORTS / "qat.graph.json", profile=EXPORTS / "qat.profile.json", times=EXPORTS / "qat.timing.json"
    )
    kinds = ("compute", "conversion", "reorder", "quantize", "view", "other")
    assert [len(engine.of_kind(kind)) for kind in kinds] == [23, 1, 1, 10, 2, 0]
    assert engine.ends == ("input.1", "422")
    assert engine.layer_sum_s == pytest.approx(1.09568e-3)
    assert len(engine.runs_s) == 25
    assert engine.runs_s[0] == pytest.approx(0.909312e-3)
    assert engine.remarks == ()
    products = [one for one in engine.layers if one.product]
    assert len(products) == 21
    assert {one.precision for one in products} == {"int8"}
    assert products[0].modules == ("conv1",)
    assert products[0].nodes == ("QuantizeLinear_7", "Conv_9")
    assert products[0].latency_s == pytest.approx(0.201728e-3)
    assert products[0].tactic == "ampere_fp32_icudnn_int8x4_128x64_relu_medium_nn_v1"
    assert products[0].outputs[0].shape == (32, 64, 112, 112)
    assert engine.fallbacks() == ()


def test_the_same_network_in_fp16_computes_in_fp16() -> None:
    engine = read_engine(EXPORTS / "fp16.graph.json")
    assert {one.precision for one in engine.layers if one.product} == {"fp16"}
    assert len(engine.of_kind("conversion")) == 2
    assert len(engine.of_kind("view")) == 11
    assert engine.layer_sum_s == 0


def test_the_form_of_11_tells_ends_types_and_nodes() -> None:
    result = {
        "Layers": [
            layer(
                "__myl_Conv_0",
                "gemm",
                Metadata="[ONNX Layer: /conv1/Conv]\x1e[ONNX Layer: /relu/Relu]",
                Inputs=[{"Name": "x", "Dimensions": [1, 3, 8, 8], "Format": "kLINEAR", "Datatype": "Half"}],
                Outputs=[{"Name": "y", "Dimensions": [1, 4, 8, 8], "Format": "kCHW32", "Datatype": "Int8"}],
                TacticValue="0x0000000000000000",
            )
        ],
        "I/O Tensors": [{"Name": "x", "IOMode": "Input"}, {"Name": "y", "IOMode": "Output"}],
    }
    engine = engine_of(result, name="new")
    (one,) = engine.layers
    assert engine.ends == ("x", "y")
    assert one.nodes == ("/conv1/Conv", "/relu/Relu")
    assert one.modules == ("conv1", "relu")
    assert one.precision == "fp16"
    assert (one.outputs[0].dtype, one.outputs[0].format) == ("int8", "kCHW32")
    assert one.tactic == ""
    assert one.product


def test_an_engine_without_detailed_verbosity_has_names_and_says_so() -> None:
    engine = engine_of({"Layers": ["Conv_0 + Relu_1", "MaxPool_2"], "Bindings": ["x"]}, name="e")
    assert engine.layers[0].nodes == ("Conv_0", "Relu_1")
    assert "without detailed verbosity" in engine.remarks[0]


def test_float_products_among_int8_ones_and_gpu_layers_beside_a_dla_are_fallbacks() -> None:
    result = [
        layer("a", Weights={"Type": "Int8"}),
        layer("b", Weights={"Type": "Half"}),
        layer("pool", "CaskPooling"),
    ]
    assert engine_of({"Layers": result}, name="e").fallbacks() == (("b", "computes in fp16, others in int8"),)
    dla = engine_of({"Layers": [layer("{ForeignNode[a...b]}", "DLA"), layer("c")]}, name="e")
    assert dla.fallbacks() == (("c", "runs on the GPU, others on the DLA"),)


def test_a_copy_between_types_converts_and_one_between_formats_reorders() -> None:
    def copy(before: str, after: str) -> str:
        sides = {
            side: [{"Name": side, "Format/Datatype": words}]
            for side, words in (("Inputs", before), ("Outputs", after))
        }
        return engine_of({"Layers": [layer("r", "Reformat", **sides)]}, name="e").layers[0].kind

    assert copy("Row major linear FP32", "Row major linear FP16 format") == "conversion"
    assert copy("Row major linear FP32", "Channel major FP32 format") == "reorder"


def test_times_come_from_trtexec_or_from_an_iprofiler() -> None:
    trtexec = [{"count": 4}, {"name": "a", "timeMs": 8.0, "averageMs": 2.0, "medianMs": 1.5}]
    assert profile_of(trtexec) == {"a": pytest.approx(1.5e-3)}
    twice = [*trtexec, {"name": "pool", "averageMs": 0.5}, {"name": "a", "averageMs": 2.0, "medianMs": 1.0}]
    assert profile_of(twice) == {"a": pytest.approx(2.5e-3), "pool": pytest.approx(5e-4)}
    assert profile_of([{"count": 4}, {"name": "a", "timeMs": 8.0}]) == {"a": pytest.approx(2e-3)}
    assert profile_of({"a": [1.0, 9.0, 2.0], "b": 3.0}) == {
        "a": pytest.approx(2e-3),
        "b": pytest.approx(3e-3),
    }
    assert list(runs_of([{"computeMs": 2.0}])) == [pytest.approx(2e-3)]


def test_what_only_one_of_the_files_knows_is_kept_and_told() -> None:
    engine = timed(engine_of({"Layers": [layer("a"), layer("b")]}, name="e"), {"a": 1e-3, "unlisted": 2e-3})
    assert [one.latency_s for one in engine.layers] == [1e-3, None, 2e-3]
    assert "'unlisted'" in engine.remarks[0]
    assert "'b'" in engine.remarks[1]


def test_modules_of_the_onnx_file_name_what_names_do_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"Layers": [layer("node_conv2d + node_relu")]}))
    engine = read_engine(path, modules={"node_conv2d": "stem.conv"})
    assert engine.layers[0].modules == ("stem.conv",)


@pytest.mark.parametrize(
    "message", ["[]", '{"layers": []}', '{"Layers": [{"LayerType": "x"}]}', '{"Layers": [', "12"]
)
def test_what_is_no_export_is_refused_with_the_command_that_makes_one(tmp_path: Path, message: str) -> None:
    path = tmp_path / "layers.json"
    path.write_text(message)
    with pytest.raises(ArtifactError, match=r"layers\.json"):
        read_engine(path)
    with pytest.raises(ArtifactError, match="does not exist"):
        read_engine(tmp_path / "none.json")


@pytest.mark.parametrize(
    "message",
    [
        {"Layers": [{"Name": "a", "Inputs": ["x"]}]},
        {"Layers": [{"Name": "a", "Inputs": [{"Dimensions": ["n"]}]}]},
        {"Layers": [{"Name": "a"}], "Bindings": 5},
        {"Layers": [{"Name": "a"}], "I/O Tensors": [{"Shape": [1]}]},
    ],
)
def test_an_export_that_somebody_edited_is_refused_whatever_is_wrong_in_it(message: object) -> None:
    with pytest.raises(ArtifactError, match="is not JSON of TensorRT's inspector"):
        engine_of(message, name="e")


@pytest.mark.parametrize(
    "message", ["[]", "{}", '{"a": []}', '[{"name": "a"}]', '[{"name": "a", "medianMs": "fast"}]', "3"]
)
def test_a_profile_without_times_is_refused(tmp_path: Path, message: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(message)
    with pytest.raises(ArtifactError, match="has no times of layers"):
        read_engine(EXPORTS / "qat.graph.json", profile=path)
    times = tmp_path / "times.json"
    times.write_text('[{"latencyMs": 1}]')
    with pytest.raises(ArtifactError, match="has no times of runs"):
        read_engine(EXPORTS / "qat.graph.json", times=times)


def test_an_engine_is_plain_json() -> None:
    answer = read_engine(EXPORTS / "qat.graph.json", profile=EXPORTS / "qat.profile.json").to_json()
    assert json.loads(json.dumps(answer)) == answer
    assert answer["counts"]["quantize"] == 10
