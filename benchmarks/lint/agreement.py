"""Do lint's rules and NVIDIA's own parser agree? Files of many kinds through both.

    PYTHONPATH=DIR python benchmarks/lint/agreement.py [--zoo] [--table]

With --zoo the networks of torchvision, timm and transformers in `ZOO`, which must be installed. DIR holds
TensorRT-RTX (tensorrt-rtx-cu13-libs, tensorrt-rtx-cu13-bindings). A file agrees where lint has an error and
the parser refuses it, or neither; TensorRT-RTX also refuses what needs a plugin, since it has none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deadweight.targets.plain import plain

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "export" / "lint")]

from benchmarks.common.record import Row, append, recorded  # noqa: E402
from benchmarks.int8.lint import built  # noqa: E402
from benchmarks.lint.nvidia_parser import ask  # noqa: E402

RECORD = Path("runs/lint_agreement.jsonl")
ZOO_RECORD = Path("runs/lint_agreement_zoo.jsonl")
VERSION = "11.4"
SAMPLES = 4
EXAMPLES_AND_ZOO = (
    *("Mlp", "Cnn", "PilotNet", "PixelUNet", "YoloLike", "ConvAutoencoder", "CalledTwice"),
    *("SpatialAttention", "TorchEncoder", "HardCoded", "Lstm", "Gru"),
)
ZOO = (
    *("alexnet", "squeezenet1_1", "googlenet", "resnet18", "resnet50", "resnext50_32x4d", "densenet121"),
    *("mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "efficientnet_b0", "regnet_x_400mf"),
    *("convnext_tiny", "swin_t", "lraspp_mobilenet_v3_large", "r3d_18"),
    *("vit_tiny_patch16_224", "mobilenetv4_conv_small", "repvit_m0_9", "mobilevit_xxs", "edgenext_xx_small"),
    *("convnextv2_atto", "efficientvit_b0", "levit_128s", "poolformer_s12", "mixer_s32_224"),
    *("bert", "gpt2", "llama", "t5_encoder", "segformer_b0", "wav2vec2"),
)
"""Of benchmarks/zoo/networks.py: every family by one or two."""
SMALL = {
    "ResidualCnn": ("nets", (3, 16, 16), (16,)),
    "Flattened": ("nets", (1, 8, 8), ()),
    "Separable": ("nets", (3, 8, 8), ()),
    "Concatenated": ("nets", (2, 8, 8), ()),
    "Shuffled": ("nets", (3, 8, 8), ()),
    "Grouped": ("nets", (3, 8, 8), ()),
    "Detector": ("nets", (3, 8, 8), ()),
    "Auxiliary": ("nets", (3, 8, 8), ()),
    "Stages": ("block_nets", (3, 16, 16), ()),
    "Vit": ("sequence_nets", (3, 8, 8), ()),
    "Encoder": ("sequence_nets", (7, 6), ()),
    "Recurrent": ("sequence_nets", (7, 5), ()),
}
OPSETS = range(9, 26)
PLANTED = ("test_explicit", "test_operators", "test_restrictions")
NEW_IN = {17: "LayerNormalization", 18: "ReduceMean", 20: "Gelu", 21: "GroupNormalization"} | {
    23: "RMSNormalization",
    24: "Swish",
}
TAILS = ("NonMaxSuppression", "NonZero", "TopK", "RoiAlign", "EfficientNMS_TRT", "EfficientNMS_TRT in TRT")


def network(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network in eval mode, and inputs for it."""
    if name in EXAMPLES_AND_ZOO or name in ZOO:
        module, inputs = built(name)
        return module, {key: value[:SAMPLES] for key, value in inputs.items()}
    where, shape, arguments = SMALL[name]
    torch.manual_seed(0)
    module = getattr(import_module(f"support.{where}"), name)(*arguments).eval()
    first = "steps" if name in ("Encoder", "Recurrent") else "image"
    return module, {first: torch.randn(SAMPLES, *shape)}


def of_network(name: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """The network as exported, in INT8, and in FP16."""
    from deadweight.export.onnx_graph.graph import load, save
    from deadweight.export.quantization.calibrate import calibrate
    from deadweight.export.quantization.fp16 import to_half
    from deadweight.export.quantization.to_qdq import to_qdq
    from deadweight.export.to_onnx import to_onnx

    module, inputs = network(name)
    path = folder / f"{name}.onnx"
    to_onnx(module, {key: value[:2] for key, value in inputs.items()}, path)
    yield f"{name} float", path
    float_ = load(path)
    made = {
        "FP16": to_half(float_, tensorrt=(10, 3)).model,
        "INT8": to_qdq(float_, calibrate(float_, [inputs])).model,
    }
    for kind in made:
        target = folder / f"{name}-{kind}.onnx"
        save(made[kind].proto, target)
        yield f"{name} {kind}", target


def _weights(*shape: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) / 8).astype(np.float32)


def saved(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, tuple[int, int]],
    constants: Mapping[str, np.ndarray],
    opset: int,
) -> Path:
    """Writes a graph; an output is its element type and its number of axes."""
    graph = helper.make_graph(
        list(nodes),
        path.stem,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, [None] * axes) for name, (kind, axes) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    domains = sorted({node.domain for node in nodes if node.domain})
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    least = helper.find_min_ir_version_for(imports[:1], True)
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=max(least, 4)), path)
    return path


def of_opset(opset: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """A small network of operators that every opset has, and one that is new in it."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Add", ["p", "p"], ["s"]),
    ]
    constants = {"w": _weights(16, 16, 3, 3), "bias": _weights(10)}
    last, new = "s", NEW_IN.get(opset, "")
    if new == "ReduceMean":
        constants["axes"] = np.array([1], np.int64)
        nodes.append(node(new, [last, "axes"], ["n"]))
    elif new in ("LayerNormalization", "RMSNormalization"):
        constants["g"] = np.ones(4, np.float32)
        nodes.append(node(new, [last, "g"], ["n"]))
    elif new == "GroupNormalization":
        constants["g"], constants["b"] = np.ones(16, np.float32), np.zeros(16, np.float32)
        nodes.append(node(new, [last, "g", "b"], ["n"], num_groups=4))
    elif new:
        nodes.append(node(new, [last], ["n"]))
    last = "n" if new else last
    channels = 1 if new == "ReduceMean" else 16
    nodes += [node("GlobalAveragePool", [last], ["a"]), node("Flatten", ["a"], ["f"])]
    nodes.append(node("Gemm", ["f", "v", "bias"], ["y"]))
    constants["v"] = _weights(channels, 10)
    path = folder / f"opset{opset}.onnx"
    yield (
        f"opset {opset} {new}".strip(),
        saved(path, nodes, {"x": (1, 16, 8, 8)}, {"y": (TensorProto.FLOAT, 2)}, constants, opset),
    )


def of_tail(tail: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """A detector: boxes and scores of a convolution, and what selects from them."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        node("Sigmoid", ["c"], ["g"]),
        node("Reshape", ["g", "shape"], ["both"]),
        node("Split", ["both", "sizes"], ["boxes", "scores"], axis=2),
    ]
    constants = {
        "w": _weights(12, 16, 3, 3),
        "shape": np.array([1, 64, 12], np.int64),
        "sizes": np.array([4, 8], np.int64),
    }
    outputs = {"y": (TensorProto.INT64, 2)}
    name, _, domain = tail.partition(" in ")
    if tail == "NonMaxSuppression":
        constants |= {"k": np.array([10], np.int64), "iou": np.array([0.45], np.float32)}
        nodes.append(node("Transpose", ["scores"], ["turned"], perm=[0, 2, 1]))
        nodes.append(node(tail, ["boxes", "turned", "k", "iou"], ["y"]))
    elif tail == "NonZero":
        constants["half"] = np.array(0.5, np.float32)
        nodes += [node("Greater", ["scores", "half"], ["sure"]), node("Cast", ["sure"], ["s"], to=1)]
        nodes.append(node(tail, ["s"], ["y"]))
    elif tail == "TopK":
        constants["k"] = np.array([5], np.int64)
        nodes.append(node(tail, ["scores", "k"], ["best", "y"], axis=1))
        outputs = {"y": (TensorProto.INT64, 3)}
    elif tail == "RoiAlign":
        constants |= {"i": np.zeros(64, np.int64), "flat": np.array([64, 4], np.int64)}
        nodes += [node("Reshape", ["boxes", "flat"], ["rois"]), node(tail, ["c", "rois", "i"], ["y"])]
        outputs = {"y": (TensorProto.FLOAT, 4)}
    else:
        made = ["y", "b", "s", "k"]
        settings: dict[str, Any] = {"max_output_boxes": 10, "iou_threshold": 0.45, "score_threshold": 0.25}
        nodes.append(node(name, ["boxes", "scores"], made, domain=domain, plugin_version="1", **settings))
        outputs = {"y": (TensorProto.INT32, 2)}
    path = folder / f"{tail.replace(' ', '-')}.onnx"
    yield f"detector: {tail}", saved(path, nodes, {"x": (1, 16, 8, 8)}, outputs, constants, 17)


def of_planted(folder: Path) -> Iterator[tuple[str, Path]]:
    """The graphs in which lint's own tests plant a fault."""
    for module in PLANTED:
        for place, case in enumerate(import_module(module).CASES):
            path = folder / f"{module}-{place}.onnx"
            onnx.save(case.build(True), path)
            yield f"planted {case.rule}: {case.words} ({case.on})", path


def judged(name: str, path: Path) -> Row:
    """What lint and the parser say of one file."""
    from deadweight.export.lint.check import lint

    started = time.monotonic()
    report, opinion = lint(path, tensorrt=VERSION), ask(path)
    rules = sorted({f"{one.severity} {one.rule}" for one in report.findings})
    parsed = not (opinion.refused or opinion.ended)
    operators = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    plugin = "NonZero" in operators or any(one.rule == 109 for one in report.findings)
    same = not opinion.taken if report.counts["error"] else parsed
    agree = "yes" if same else "no plugins there" if opinion.rtx and plugin else "NO"
    return {
        "file": name,
        "bytes": path.stat().st_size,
        "rules": rules,
        "agree": agree,
        "opinion": plain(opinion),
        "s": round(time.monotonic() - started, 1),
    }


def cases() -> dict[str, Callable[[Path], Iterator[tuple[str, Path]]]]:
    """All cases by name; one can give several files."""
    made: dict[str, Callable[[Path], Iterator[tuple[str, Path]]]] = {}
    made |= {f"opset {one}": partial(of_opset, one) for one in OPSETS}
    made |= {f"detector {one}": partial(of_tail, one) for one in TAILS}
    made |= {"planted faults": of_planted}
    return made | {name: partial(of_network, name) for name in (*SMALL, *EXAMPLES_AND_ZOO)}


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, a file a line, and the totals."""
    lines = ["| file | lint | parser | builder | agree |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        said = row["opinion"]
        parser = said["refused"][:70] or said["ended"] or "takes it"
        builder = {True: "builds it", False: said["unbuilt"][:60], None: "not asked"}[said["built"]]
        rules = ", ".join(row["rules"]) or "nothing"
        lines.append(f"| {row['file']} | {rules} | {parser} | {builder} | {row['agree']} |")
    totals = Counter(row["agree"] for row in rows)
    counted = ", ".join(f"{count} {name}" for name, count in totals.most_common())
    built_ = Counter(row["opinion"]["built"] for row in rows)
    asked = built_[True] + built_[False]
    return "\n".join([*lines, "", f"{len(rows)} files: {counted}; built: {built_[True]} of {asked}"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Lint and NVIDIA's parser on the same files.")
    parser.add_argument("--zoo", action="store_true", help="the networks of others")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    record = given.record or (ZOO_RECORD if given.zoo else RECORD)
    known = {row["case"] for row in recorded(record)}
    asked = {name: partial(of_network, name) for name in ZOO} if given.zoo else cases()
    for name, make in asked.items() if not given.table else ():
        if name in known:
            continue
        with tempfile.TemporaryDirectory() as directory:
            rows = [judged(label, path) for label, path in make(Path(directory))]
        append(record, *({"case": name, **row} for row in rows))
        print(name, [row["agree"] for row in rows], file=sys.stderr)
    print(table(recorded(record)))


if __name__ == "__main__":
    main()
