"""Precision of each layer by measured time: mixed files beside all-INT8 and all-float, on three networks.

    python benchmarks/int8/by_time.py [--networks Depthwise Vit Cnn]     # on one quiet core
    python benchmarks/int8/by_time.py --table

The networks of qat.py, and the residual network on as many images of Fashion-MNIST. The time of each layer
in both precisions, with the borders, is a table as that of the stage budget, without widths; the damage of a
layer is the rise of the validation loss with this layer alone in INT8. Plans: the fastest, and those of the
least damage within some shares of the way from it to all-float. All are timed interleaved, and scored.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import Cell, in_turn, markdown, missing_words
from benchmarks.common.record import Row, recorded
from benchmarks.int8.qat import FOLDER, NETWORKS, test_score, works
from deadweight.export.onnx_graph.graph import save
from deadweight.pipeline.budget.grids import Network
from deadweight.pipeline.budget.latency import of_table
from deadweight.pipeline.budget.measured import table_of
from deadweight.pipeline.budget.precision import FLOAT, INT8, bits_of, int8_damage, with_precision
from deadweight.pipeline.budget.solve import solve
from deadweight.pipeline.quantization.candidates import validated
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol

RECORD = Path("runs/int8_by_time.jsonl")
SHARES = (0.0, 0.05, 0.1, 0.25, 0.5)
SEED = 1


def measure(cell: Cell) -> Row:
    """The judgement and the scores of every plan of a network."""
    work, _ = works(cell["network"], SEED)
    file = onnx.load(work.latest("onnx").path("onnx"))
    dialect = work.target.runtime.dialect
    network, layers = with_precision(Network(lambda widths: file, {}, {}), work.workload, dialect)
    folder = FOLDER / f"{cell['network']}-{SEED}"
    table = table_of(
        network,
        lambda files, protocol: time_together(files, protocol=replace(protocol, events=6)),
        folder / "precision.table.json",
        runtime="onnxruntime",
        networks=min(60, 2 ** len(layers) - 2),
        begun=print,
    )
    damage = replace(
        table,
        damage={
            name: {str(bits): rise for bits, rise in own.items()}
            for name, own in int8_damage(file, layers, work.workload, dialect).items()
        },
    ).damages()
    latency = of_table(table)
    seconds = latency.sum()
    whole = {"float": FLOAT, "int8": INT8}
    plans: dict[str, dict[str, int]] = {
        name: {bits_of(layer): bits for layer in layers} for name, bits in whole.items()
    }
    fastest = solve(table.levels, seconds)
    slack = latency.dense_s - fastest.value
    for share in SHARES:
        limit = fastest.value * (1 + 1e-3) + share * slack
        widths = dict(solve(table.levels, damage, [(seconds, limit)]).widths)
        if widths not in plans.values():
            plans[f"plan {share:g}"] = widths
    files = {}
    for name, own in plans.items():
        files[name] = folder / f"by_time-{name.replace(' ', '_')}.onnx"
        save(network.file_at(own), files[name])
    measured = time_together(files, protocol=Protocol(events=48))
    rows: dict[str, Any] = {}
    for name, own in plans.items():
        rows[name] = {
            "in_int8": sum(bits == INT8 for bits in own.values()),
            "predicted": round(float(latency.predicted([own])[0]) / latency.dense_s, 3),
            "validation": round(100 * validated(work, files[name]), 3),
            "test": test_score(work, files[name]),
        }
        for other in whole:
            judged = judge(measured[other], measured[name])
            rows[name][other] = [
                judged.outcome,
                *(round(x, 3) for x in (judged.ratio, judged.low, judged.high)),
            ]
    errors = sorted(abs(latency.errors))
    return {"layers": len(layers), "median_error": round(errors[len(errors) // 2], 4), "plans": rows}


def table_text(rows: list[Row]) -> str:
    """A line for each plan."""
    head = ["network", "plan", "layers in INT8", "than all-float", "predicted", "than all-INT8"]
    head += ["validation", "test"]
    lines = []
    for row in rows:
        whole = row["plans"]["float"]["predicted"]
        for name, plan in row["plans"].items():
            speeds = [
                f"{plan[one][0]}, {plan[one][1]:.2f}x ({plan[one][2]:.2f} to {plan[one][3]:.2f})"
                for one in ("float", "int8")
            ]
            speeds.insert(1, f"{whole / plan['predicted']:.2f}x")
            counts = f"{plan['in_int8']} of {row['layers']}"
            scores = [f"{plan[one]:.2f}" for one in ("validation", "test")]
            lines.append([row["cell"]["network"], name, counts, *speeds, *scores])
    return markdown(head, lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Precision of each layer by measured time.")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    cells = [{"network": network} for network in given.networks]
    if not given.table:
        in_turn(cells, measure, RECORD)
    rows = recorded(RECORD)
    print(f"{table_text(rows)}\n\n{missing_words(rows, cells)}")


if __name__ == "__main__":
    main()
