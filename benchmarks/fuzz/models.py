"""Networks and their data: ONNX files, packed ones, samples, checkpoints, and saved networks."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from support.releases import network, packed

from benchmarks.fuzz.kind import Files, Kind, files_in

TEXTS = (  # bodies, functions and sizes that only a run knows
    """<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x, bool c) => (float[n, 4] y)
    { y = If (c) <then_branch = t () => (float[n, 4] a) { a = Relu (x) },
                  else_branch = e () => (float[n, 4] b) { b = Neg (x) }> }""",
    """<ir_version: 8, opset_import: ["" : 17]> g (float[4] x, int64 n) => (float[4] y)
    { k = Constant <value_ints = [1]> () c = Cast <to = 9> (n)
      y = Loop (n, c, x) <body = b (int64 i, bool p, float[4] v) => (bool q, float[4] w)
      { q = Identity (p) w = Add (v, v) }> }""",
    """<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[2, 4] x) => (float[2, 4] y)
    { y = own.twice (x) } <domain: "own", opset_import: ["" : 17]> twice (a) => (b) { b = Add (a, a) }""",
    """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 3, 8, 8] x, float[4, 3, 3, 3] w) => (float[5] v, int64[5] i)
    <int64[1] k = {5}, int64[1] s = {-1}>
    { c = Conv <pads = [1, 1, 1, 1]> (x, w) f = Reshape (c, s) v, i = TopK (f, k) }""",
    """<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x, int64[2] s) => (float[n, m] y)
    { a = ConstantOfShape (s) y = MatMul (x, a) }""",
)


def _onnx_seeds(place: Path) -> list[Files]:
    import onnx.backend.test

    data = Path(onnx.backend.test.__file__).parent / "data"
    paths = (path for path in sorted(data.rglob("*.onnx")) if path.parent.name != "light")  # those are slow
    found = [path.read_bytes() for path in paths if path.stat().st_size < 30_000]
    found += [onnx.parser.parse_model(text).SerializeToString() for text in TEXTS] + [network(1)]
    outside = place / "model.onnx"
    model = onnx.load_model_from_string(network(2))
    onnx.save(model, outside, save_as_external_data=True, location="w.bin", size_threshold=0)
    return [*({"model.onnx": one} for one in found), *[files_in(place)] * (len(found) // 8)]


def _runnable(place: Path) -> list[Files]:
    """Those that ONNX Runtime has kernels for, and fast ones."""
    return [{"model.onnx": onnx.parser.parse_model(text).SerializeToString()} for text in TEXTS] + [
        {"model.onnx": network(1)},
        *_onnx_seeds(place)[-1:],
    ]


def _lint(folder: Path, random: Random) -> None:
    from deadweight import api
    from deadweight.terminal.show import show

    target = random.choice((None, "orin-nano-8gb", "xavier-nx-8gb"))
    show(api.lint(folder / "model.onnx", target=target, dla=target == "xavier-nx-8gb"))


def _memory(folder: Path, random: Random) -> None:
    from deadweight import api
    from deadweight.terminal.show import show

    batch = random.choice((1, 1, 4))
    show(api.memory(folder / "model.onnx", batch=batch, target=random.choice((None, "orin-nano-8gb"))))


def _pack(folder: Path, random: Random) -> None:
    from deadweight.commands.packing import pack, unpack

    clusters = random.choice((None, None, ["4"]))
    pack(folder / "model.onnx", folder / "model.dwz", clusters=clusters)
    unpack(folder / "model.dwz", folder / "again.onnx")
    if clusters is None:
        assert (folder / "again.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


def _compare(folder: Path, random: Random) -> None:
    from deadweight import api
    from deadweight.terminal.show import show

    show(api.compare(folder / "model.onnx", folder / "model.onnx", events=2, event_s=0.001))


def _quantize(folder: Path, random: Random) -> None:
    from deadweight import api
    from deadweight.terminal.show import show

    target = random.choice(("x86-cpu", "orin-nano-8gb"))
    show(api.quantize(folder / "model.onnx", folder / "samples.npz", target=target, out=folder / "out"))


def _quantize_seeds(place: Path) -> list[Files]:
    random = np.random.default_rng(0)
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("BatchNormalization", ["a", "s", "b", "b", "s"], ["n"]),
        onnx.helper.make_node("Relu", ["n"], ["r"]),
        onnx.helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        onnx.helper.make_node("Flatten", ["p"], ["f"]),
        onnx.helper.make_node("Gemm", ["f", "v"], ["y"]),
    ]
    held = {"w": random.normal(size=(4, 3, 3, 3)), "s": np.ones(4), "b": np.zeros(4)}
    held["v"] = random.normal(size=(4, 5))
    weights = [onnx.numpy_helper.from_array(one.astype(np.float32), name) for name, one in held.items()]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 5])
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    samples = packed(x=random.normal(size=(6, 3, 8, 8)).astype(np.float32))
    return [{"model.onnx": model.SerializeToString(), "samples.npz": samples}]


def _samples(folder: Path, random: Random) -> None:
    from deadweight.export.quantization.samples import open_samples
    from deadweight.targets.timing.inputs import given_inputs

    given_inputs(folder / "samples.npz")
    for _ in open_samples(folder / "model.onnx", folder / "samples.npz").batches():
        pass


def _dwz_seeds(place: Path) -> list[Files]:
    from deadweight.export.coding.cluster import cluster_file
    from deadweight.export.coding.container import pack_file

    (place / "a.onnx").write_bytes(network(1, width=64))
    (place / "b.onnx").write_bytes(_quantize_seeds(place)[0]["model.onnx"])
    cluster_file(place / "b.onnx", place / "c.onnx", 4)
    for name in "abc":
        pack_file(place / f"{name}.onnx", place / f"{name}.dwz")
    packed = [(place / f"{name}.dwz").read_bytes() for name in "abc"]
    return [{"model.dwz": data} for data in (*packed, *map(lzma.decompress, packed))]


def _dwz_sealed(files: Files) -> Files:
    """A content that was changed, compressed again; a change of compressed bytes stays."""
    from deadweight.export.coding.container import xz

    data = files["model.dwz"]
    return {"model.dwz": xz(data) if data[:4] == b"DWZ2" else data}


def _unpack(folder: Path, random: Random) -> None:
    from deadweight.commands.packing import unpack

    unpack(folder / "model.dwz", folder / "model.onnx")


def _weights_seeds(place: Path) -> list[Files]:
    import torch
    from safetensors.torch import save as save_tensors
    from support import nets

    model = nets.ResidualCnn()
    plain, nested = io.BytesIO(), io.BytesIO()
    torch.save(model.state_dict(), plain)
    torch.save({"model": model.state_dict(), "epoch": 3}, nested)
    held = {"model.safetensors": save_tensors(dict(model.state_dict()))}
    return [held, {"model.pt": plain.getvalue()}, {"model.pt": nested.getvalue()}]


def _weights(folder: Path, random: Random) -> None:
    from deadweight.pipeline.stages.load import read_weights

    read_weights(next(folder.iterdir()), random.choice(("", "", "model")))


def _training_seeds(place: Path) -> list[Files]:
    import torch
    from support import nets

    from deadweight.pipeline.compression.masks import save_masks
    from deadweight.pipeline.importance.activations import collect
    from deadweight.pipeline.pruning.trace import trace
    from deadweight.pipeline.training import checkpoint

    model, example = nets.ResidualCnn(), (nets.image(2, 3, 8, 8),)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(*example).sum().backward()
    optimizer.step()
    reached = checkpoint.Reached((0.5, 0.6), 1, dict(model.state_dict()), 7)
    checkpoint.save(place / "training.safetensors", model, optimizer, reached)
    named = {"image": example[0]}
    collect(trace(model.eval(), named), [named]).save(place / "statistics.safetensors")
    save_masks(place / "masks.safetensors", {"w": torch.ones(3, 4, dtype=torch.bool)}, "free")
    return [{name: data} for name, data in files_in(place).items()]


def _training(folder: Path, random: Random) -> None:
    import torch
    from support import nets

    from deadweight.pipeline.compression.masks import load_masks
    from deadweight.pipeline.importance.activations import ActivationStatistics
    from deadweight.pipeline.training import checkpoint

    path = next(folder.iterdir())
    if path.stem == "training":
        model = nets.ResidualCnn()
        checkpoint.reached(path)
        checkpoint.load(path, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    elif path.stem == "statistics":
        ActivationStatistics.load(path)
    else:
        load_masks(path)


def _saved_seeds(place: Path) -> list[Files]:
    import torch
    from support import nets

    from deadweight.pipeline.pruning.groups import choose
    from deadweight.pipeline.pruning.plan import plan_of
    from deadweight.pipeline.pruning.saved import save_pruned
    from deadweight.pipeline.pruning.surgery import apply
    from deadweight.pipeline.pruning.trace import trace

    model, example = nets.lively(nets.ResidualCnn()), (nets.image(2, 3, 8, 8),)
    groups = trace(model, example)
    scores = {group.name: torch.arange(group.size).float() for group in groups}
    small: Any = apply(model, choose(groups, scores, ratio=0.5), groups)
    plan = plan_of(small)
    assert plan is not None
    save_pruned(place, small, plan, example)
    found = files_in(place)
    shutil.rmtree(place)
    return [found]


def _saved_sealed(files: Files) -> Files:
    try:
        value = json.loads(files["plan.json"])
        value["weights"] = hashlib.sha256(files["model.safetensors"]).hexdigest()
        value.pop("sha256", None)
        value["sha256"] = hashlib.sha256(_canonical(value)).hexdigest()
        return {**files, "plan.json": _canonical(value)}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return files


def _canonical(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _saved(folder: Path, random: Random) -> None:
    from support import nets

    from deadweight.pipeline.pruning.saved import load_pruned

    load_pruned(nets.ResidualCnn, folder)


KINDS = {
    "ONNX: lint": Kind(40, _onnx_seeds, _lint),
    "ONNX: memory": Kind(40, _onnx_seeds, _memory),
    "ONNX: pack": Kind(40, _onnx_seeds, _pack),
    "ONNX: compare": Kind(2, _runnable, _compare),
    "ONNX: quantize": Kind(1, _quantize_seeds, _quantize),
    "samples": Kind(20, _quantize_seeds, _samples),
    "packed network": Kind(20, _dwz_seeds, _unpack, _dwz_sealed),
    "checkpoint": Kind(20, _weights_seeds, _weights),
    "training, statistics, masks": Kind(20, _training_seeds, _training),
    "saved network": Kind(10, _saved_seeds, _saved, _saved_sealed),
}
