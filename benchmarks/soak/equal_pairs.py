"""Soaks of real networks on this machine: one against itself 20 times, and two beside a neighbour once.

    python benchmarks/soak/equal_pairs.py short     # 20 soaks of half a minute: how many find a difference?
    python benchmarks/soak/equal_pairs.py long      # ten minutes, two networks, beside copies of 64 MB

Run it on one core: taskset -c 0. Each result is a line in runs/soak/.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[2]))

import deadweight
from deadweight.targets.timing.binomial import clopper_pearson

PLACE = Path("runs/soak")
SHORT = 20


def network(path: Path, channels: int) -> Path:
    """Three convolutions of 32x32 images and a linear layer."""
    random, nodes, weights, last, wide = np.random.default_rng(0), [], [], "image", 3
    for layer in range(3):
        weight = random.normal(0, 0.05, (channels, wide, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        last, wide = f"r{layer}", channels
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    ends = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32]),
        helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [1, channels, 1, 1]),
    ]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def short(original: Path) -> None:
    """How often one network is called faster or slower than itself."""
    found = []
    for _ in range(SHORT):
        result = deadweight.soak(original, original, minutes=0.5, period_s=0.5)
        found.append(result.summary.judgements[""])
        with (PLACE / "equal.jsonl").open("a") as file:
            file.write(json.dumps(found[-1].to_json()) + "\n")
        print(found[-1].sentence(), result.summary.memory.sentence(), flush=True)
    wrong = sum(one.outcome in ("faster", "slower") for one in found)
    low, high = clopper_pearson(wrong, SHORT)
    print(f"{wrong} of {SHORT} soaks of equal networks found a difference ({low:.2f} to {high:.2f}).")


def long(original: Path, pruned: Path) -> None:
    """Two networks alternating, alone and beside a neighbour that copies memory."""
    result = deadweight.soak(original, pruned, minutes=10, beside="memory")
    deadweight.show(result)
    (PLACE / "long.json").write_text(json.dumps(result.to_json()))
    from deadweight.pipeline.report.soak_page import write_soak

    names = {name: path.name for name, path in result.models.items()}
    print(write_soak(PLACE / "long.html", result.verdict, names, result.soak, result.summary))


if __name__ == "__main__":
    PLACE.mkdir(parents=True, exist_ok=True)
    networks = [
        network(PLACE / f"{name}.onnx", channels) for name, channels in (("original", 64), ("pruned", 32))
    ]
    if "short" in sys.argv:
        short(networks[0])
    if "long" in sys.argv:
        long(*networks)
