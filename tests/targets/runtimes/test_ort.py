import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deadweight.targets.errors import ModelError
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.runtimes.session import TensorSpec, random_inputs

MakeMlp = Callable[..., Path]


def saved(path: Path, node: onnx.NodeProto, *, dtype: int = TensorProto.FLOAT, domain: str = "") -> Path:
    """A model of one node from x to y, each of two elements."""
    values = [helper.make_tensor_value_info(name, dtype, [2]) for name in ("x", "y")]
    graph = helper.make_graph([node], "one", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 13), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def test_a_model_runs_and_gives_what_numpy_gives(mlp: MakeMlp) -> None:
    path = mlp(5, 7, 3)
    weights = [numpy_helper.to_array(item) for item in onnx.load(str(path)).graph.initializer]
    session = open_session(path)
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    expected = np.maximum(x @ weights[0], 0) @ weights[1]
    np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)
    assert session.inputs == (TensorSpec("x", ("batch", 5), "float32"),)
    assert session.outputs == (TensorSpec("y", ("batch", 3), "float32"),)
    assert session.runtime.startswith("onnxruntime 1.")


def test_a_prepared_run_reads_the_array_it_was_given(mlp: MakeMlp) -> None:
    session = open_session(mlp(5, 3))
    session.prepare(random_inputs(session.inputs))()


@pytest.mark.parametrize("declared", [[1, 2], [2, 2, 2], [], None])
def test_an_output_of_another_shape_than_declared_runs_again_and_again(
    tmp_path: Path, declared: list[int] | None
) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, declared)
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "one", [x], [y])
    path = tmp_path / "declared.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    call = open_session(path).prepare({"x": np.ones((4, 2), np.float32)})
    for _ in range(3):
        call()


def test_an_output_whose_size_is_drawn_at_random_runs_again_and_again(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(*end) for end in (("x", 1, [64]), ("y", 7, [1, None])))
    nodes = [helper.make_node("Bernoulli", ["x"], ["b"]), helper.make_node("NonZero", ["b"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "drawn", [x], [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, str(tmp_path / "drawn.onnx"))
    call = open_session(tmp_path / "drawn.onnx").prepare({"x": np.full(64, 0.5, np.float32)})
    for _ in range(50):
        call()


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model at"):
        open_session(tmp_path / "none.onnx")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_model_cut_short_is_refused(mlp: MakeMlp, share: float) -> None:
    path = mlp(50, 70, 3)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ModelError, match="it is truncated, or another kind of file"):
        open_session(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("a, b\n1, 2\n")
    with pytest.raises(ModelError, match="not a complete ONNX file"):
        open_session(tmp_path / "a.onnx")


@pytest.mark.parametrize("domain", ["", "com.example"])
def test_an_operator_nobody_knows_is_named(tmp_path: Path, domain: str) -> None:
    node = helper.make_node("MyNonMaximum", ["x"], ["y"], domain=domain)
    with pytest.raises(
        ModelError, match=r"has an operator unknown to ONNX Runtime \S+: .*MyNonMaximum"
    ) as caught:
        open_session(saved(tmp_path / "a.onnx", node, domain=domain))
    assert "Export the model without that operator" in caught.value.cure


def test_an_operator_without_code_for_its_type_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.onnx", helper.make_node("Sin", ["x"], ["y"]), dtype=TensorProto.BFLOAT16)
    with pytest.raises(ModelError, match="Sin"):
        open_session(path)


def test_a_model_of_a_newer_opset_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.onnx", helper.make_node("Sin", ["x"], ["y"]))
    model = onnx.load(str(path))
    model.opset_import[0].version = 99
    onnx.save(model, str(path))
    with pytest.raises(ModelError, match="newer ONNX"):
        open_session(path)


def test_weights_kept_in_another_file_that_is_gone_are_refused(mlp: MakeMlp, tmp_path: Path) -> None:
    model = onnx.load(str(mlp(50, 70)))
    onnx.save(
        model, str(tmp_path / "b.onnx"), save_as_external_data=True, location="b.weights", size_threshold=0
    )
    open_session(tmp_path / "b.onnx").close()
    (tmp_path / "b.weights").unlink()
    with pytest.raises(ModelError, match=r"external weights of b\.onnx are missing"):
        open_session(tmp_path / "b.onnx")


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"y": np.zeros((1, 5), np.float32)},
        {"x": np.zeros((1, 6), np.float32)},
        {"x": np.zeros((1, 5), np.float64)},
        {"x": np.zeros(5, np.float32)},
    ],
)
def test_wrong_inputs_are_refused_before_the_runtime_sees_them(
    mlp: MakeMlp, inputs: dict[str, np.ndarray]
) -> None:
    session = open_session(mlp(5, 3))
    for use in (session.run, session.prepare):
        with pytest.raises(ModelError, match=r"model\.onnx cannot run on these inputs"):
            use(inputs)


def test_what_fails_while_running_is_reported(tmp_path: Path) -> None:
    # Two indices into one value: known to be wrong only when the model runs.
    data = numpy_helper.from_array(np.ones(1, np.float32), "data")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["data", "x"], ["y"])],
        "gather",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [data],
    )
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    session = open_session(path)
    for use in (session.run, session.prepare):
        with pytest.raises(ModelError, match=r"failed while running a\.onnx"):
            use({"x": np.array([7])})


def test_not_a_number_passes_through(mlp: MakeMlp) -> None:
    session = open_session(mlp(5, 3))
    assert np.isnan(session.run({"x": np.full((1, 5), np.nan, np.float32)})["y"]).all()


def test_a_closed_session_runs_no_more_and_closes_twice(mlp: MakeMlp) -> None:
    session = open_session(mlp(5, 3))
    inputs = random_inputs(session.inputs)
    session.close()
    session.close()
    for use in (session.run, session.prepare):
        with pytest.raises(ModelError, match="was closed"):
            use(inputs)


def test_a_machine_without_onnx_runtime_is_reported_the_pip_line(mlp: MakeMlp) -> None:
    program = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from deadweight.targets.runtimes.open import open_session\n"
        "from deadweight.targets.errors import TargetError\n"
        "try: open_session(sys.argv[1])\n"
        "except TargetError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(mlp(5, 3))], capture_output=True, text=True, check=True
    )
    assert "needs ONNX Runtime to run, which is not installed here" in done.stdout
    assert "pip install onnxruntime" in done.stdout
