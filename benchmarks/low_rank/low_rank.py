"""Low rank against pruning against both at equal measured latency on ONNX Runtime: accuracy, three seeds.

    python benchmarks/low_rank/low_rank.py [--networks mlp cnn]
    python benchmarks/low_rank/low_rank.py --table       the tables of what was measured so far, in Markdown

For each network and speed, layers are made thin until the network is measured so many times as fast; then
pruning, and both (pruned to the root of it, then thin), are set to the speed that was reached. That is done
once, on seed 0: ranks and widths are those of all seeds, so latency is. Every network is then tuned for as
many epochs and timed against its original. The control is the thin network trained from scratch for as many
epochs as original and tuning together. What was measured stands in runs/low_rank.jsonl and is not measured
again; originals stay in runs/low_rank.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import (
    SEEDS,
    Cell,
    found,
    machine,
    markdown,
    missing_words,
    scores,
    spread,
    workload_of,
)
from benchmarks.common.record import Row, append, recorded
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.compression.low_rank import Convolution
from deadweight.pipeline.runs.seeds import paired
from deadweight.pipeline.stages.controls import Controls
from deadweight.pipeline.stages.factorize import Factorize
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Variant, Work
from deadweight.pipeline.workload import example_batch
from deadweight.targets.artifact import Artifact
from deadweight.targets.errors import DeadweightError, ModelError
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import Judgement, judge
from deadweight.targets.timing.measurement import Protocol

RECORD, RUNS = Path("runs") / "low_rank.jsonl", Path("runs") / "low_rank"
EPOCHS = {"mlp": 6, "cnn": 2}  # of the originals
TUNING = {"mlp": 2, "cnn": 1}
SPEEDS = {"mlp": (2.0, 4.0), "cnn": (1.5,)}
ARMS = {
    "mlp": ("low rank", "pruned", "both", "scratch"),
    "cnn": ("low rank", "pruned", "both", "channel", "tucker", "scratch"),
}
METHODS: dict[str, Convolution] = {"channel": "channel", "tucker": "tucker"}
"""The arms whose convolutions are split another way; all others are split in space."""
RATIOS = [at / 50 for at in range(1, 48)]
PROTOCOL = Protocol(events=12)


def cells(network: str) -> list[Cell]:
    """What is tried on a network."""
    return [
        {"network": network, "speed": speed, "arm": arm, "seed": seed}
        for speed in SPEEDS[network]
        for arm in ARMS[network]
        for seed in SEEDS
    ]


def order(cell: Cell) -> tuple[bool, int]:
    """What is measured first: the question itself, a seed of all networks at a time."""
    network = cell["network"]
    return cell["arm"] not in ARMS[network][:3] or cell["speed"] != SPEEDS[network][0], cell["seed"]


def original(network: str, seed: int) -> Work:
    """The trained original of a seed; made once."""
    place = RUNS / f"{network}-{seed}"
    work = Work(workload_of(network), load_target("x86-cpu"), place, seed, networks=NetworkFiles())
    train = Train(epochs=EPOCHS[network])
    if not (place / "done").exists():
        work = train(work)
        (place / "done").touch()
        return work
    weights = Artifact.of(place / "original" / "model.safetensors")
    return work.with_variant(Variant("original", {"weights": weights})).logged("train", train)


def structure(network: str, speed: float, arm: str, folder: Path) -> Row:
    """The widths and ranks of an arm, found once on seed 0: {"ratio", "ranks"}, either None.

    Raises:
        DeadweightError: the speed cannot be had.
    """
    named = {"network": network, "speed": speed, "structure": "low rank" if arm == "scratch" else arm}
    known = [row for row in recorded(RECORD) if row.get("cell") == named]
    made: Row = known[0] if known else {"cell": named, "ratio": None, "ranks": None}
    if not known:
        try:
            made |= searched(network, speed, arm, folder)
        except DeadweightError as error:
            made["refused"] = error.what
        append(RECORD, made)
    if "refused" in made:
        raise ModelError(made["refused"], "Ask for less.")
    return made


def searched(network: str, speed: float, arm: str, folder: Path) -> Row:
    """What `structure` finds, without a look at what was found before."""
    work, made = at(original(network, 0), folder / "start"), Row()
    if arm in ("pruned", "both"):
        reached = structure(network, speed, "low rank", folder)["reached"]
        wanted = reached if arm == "pruned" else math.sqrt(reached)
        made["ratio"], got = nearest_ratio(work, wanted, folder)
        work = pruning(made["ratio"])(at(work, folder / "pruned"))
        speed = reached / got
    if arm != "pruned":
        thin = Factorize(speedup=speed, events=PROTOCOL.events, convolution=METHODS.get(arm, "spatial"))
        work = thin(at(work, folder / "thin"))
        plan = work.plan(work.latest())
        assert plan is not None
        made["ranks"] = {
            name: one.ranks[0] if len(one.ranks) == 1 else list(one.ranks)
            for name, one in plan.factors.items()
        }
        made["words"] = work.log[-1].words
    made["reached"] = timed(work, folder).ratio
    return made


def nearest_ratio(work: Work, wanted: float, folder: Path) -> tuple[float, float]:
    """The share of each group whose removal comes nearest to a speed, and the speed."""
    tried: dict[int, float] = {}
    low, high = 0, len(RATIOS) - 1
    while low <= high:
        middle = (low + high) // 2
        # The widths are the same by any criterion, and only they take time.
        pruned = Prune(ratio=RATIOS[middle], criterion="weight_l2", norms=0)(at(work, folder / "ratio"))
        tried[middle] = timed(pruned, folder).ratio
        low, high = (middle + 1, high) if tried[middle] < wanted else (low, middle - 1)
    best = min(tried, key=lambda place: abs(math.log(tried[place] / wanted)))
    return RATIOS[best], tried[best]


def pruning(ratio: float) -> Prune:
    """Equal shares of all groups by first-order Taylor scores; aligned to what the target likes."""
    return Prune(ratio=ratio, criterion="taylor")


def measure(cell: Cell, folder: Path) -> Row:
    """One arm on one seed: made, tuned or trained from scratch, scored and timed."""
    network, arm = cell["network"], cell["arm"]
    form = structure(network, cell["speed"], arm, folder / "structure")
    work = at(original(network, cell["seed"]), folder / "start")
    if form["ratio"] is not None:
        work = pruning(form["ratio"])(at(work, folder / "pruned"))
    if form["ranks"] is not None:
        ranks = {name: tuple(one) if isinstance(one, list) else one for name, one in form["ranks"].items()}
        thin = Factorize(ranks=ranks, convolution=METHODS.get(arm, "spatial"))
        work = thin(at(work, folder / "thin"))
    raw = scores(work, work.latest().name)
    if arm == "scratch":
        epochs = EPOCHS[network] + TUNING[network]
        work = Controls(random=False, epochs=epochs)(at(work, folder / "scratch"))
        name = "scratch"
    else:
        work, name = Finetune(epochs=TUNING[network])(at(work, folder / "tuned")), "tuned"
    told = timed(work, folder, name)
    return {
        "original": scores(work, "original"),
        "raw": raw,
        "tuned": scores(work, name),
        "ratio": told.ratio,
        "low": told.low,
        "high": told.high,
        "events": told.events,
    }


def timed(work: Work, folder: Path, name: str = "") -> Judgement:
    """A network against the original, by turns, on this machine."""
    variant = work.variant(name) if name else work.latest()
    # One original for all seeds: the values of weights take no time.
    files = {"original": RUNS / f"{type(work.workload).__name__}.onnx", "small": folder / "small.onnx"}
    example = example_batch(work.workload)
    folder.mkdir(parents=True, exist_ok=True)
    if not files["original"].exists():
        to_onnx(work.model(work.variant("original")), example, files["original"])
    to_onnx(work.model(variant), example, files["small"])
    times = time_together(files, protocol=PROTOCOL)
    return judge(times["original"], times["small"])


def at(work: Work, directory: Path) -> Work:
    """The same, with another place for its files."""
    return dataclasses.replace(work, directory=directory)


def table(rows: Sequence[Row], network: str) -> str:
    """One row an arm and speed: measured speed-up, parameters, and change of test accuracy, raw and tuned."""
    lines = []
    for speed in SPEEDS[network]:
        for arm in ARMS[network]:
            here = found(rows, {"network": network, "speed": speed, "arm": arm})
            here = [row for row in here if "tuned" in row]
            if not here:
                refused = [
                    row["refused"] for row in found(rows, {"network": network, "speed": speed, "arm": arm})
                ]
                lines.append([f"{speed:g}x", arm, refused[0] if refused else "missing", "", "", "", ""])
                continue
            each = ", ".join(f"{row['ratio']:.2f}" for row in here)
            reach = (
                f"{each} ({min(row['low'] for row in here):.2f} to {max(row['high'] for row in here):.2f})"
            )
            size = f"{here[0]['tuned']['parameters'] / here[0]['original']['parameters']:.1%}"
            tuned = [row["tuned"]["test"] for row in here]
            change = [row["tuned"]["test"] - row["original"]["test"] for row in here]
            raw = [row["raw"]["test"] - row["original"]["test"] for row in here]
            told = "" if arm == "scratch" else spread(raw, sign=True)
            lines.append([f"{speed:g}x", arm, reach, size, told, spread(change, sign=True), spread(tuned)])
    whole = {
        row["cell"]["seed"]: row["original"]["test"]
        for row in found(rows, {"network": network})
        if "original" in row
    }
    head = ["speed", "network", "measured (all intervals)", "parameters", "raw", "tuned", "test accuracy"]
    about = (
        f"{network}: originals of {EPOCHS[network]} epochs, {spread(list(whole.values()))} %; tuned for "
        f"{TUNING[network]}; changes in points of test accuracy."
    )
    shapes = [
        _shape(row) for row in rows if row["cell"].get("network") == network and "structure" in row["cell"]
    ]
    parts = [about, markdown(head, lines), *_differences(rows, network), *shapes]
    return "\n\n".join([*parts, missing_words(rows, cells(network))])


def _differences(rows: Sequence[Row], network: str) -> list[str]:
    """The arms against pruning, seed by seed: mean and 95 % interval."""
    told = []
    for speed in SPEEDS[network]:
        arms = {
            arm: {
                row["cell"]["seed"]: row["tuned"]["test"]
                for row in found(rows, {"network": network, "speed": speed, "arm": arm})
                if "tuned" in row
            }
            for arm in ARMS[network]
        }
        for arm, tuned in arms.items():
            gaps = [score - arms["pruned"][seed] for seed, score in tuned.items() if seed in arms["pruned"]]
            if arm != "pruned" and len(gaps) > 1:
                told.append(
                    f"{network} {speed:g}x, {arm} less pruned: {paired(gaps).words()}, n {len(gaps)}."
                )
    return told


def _shape(row: Row) -> str:
    cell = row["cell"]
    pruned = f"{row['ratio']:.0%} of each group removed" if row["ratio"] is not None else ""
    ranks = ", ".join(f"{name} {_joined(rank)}" for name, rank in (row["ranks"] or {}).items())
    parts = "; ".join(part for part in (pruned, f"ranks {ranks}" if ranks else "") if part)
    said = row.get("refused", f"{parts}; {row.get('reached', 0):.2f}x on seed 0.")
    return f"{cell['network']} {cell['speed']:g}x, {cell['structure']}: {said}"


def _joined(rank: int | list[int]) -> str:
    return str(rank) if isinstance(rank, int) else "+".join(map(str, rank))


def main() -> None:
    """Measures what is missing, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(SPEEDS), choices=list(SPEEDS))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known: list[Any] = [row["cell"] for row in recorded(RECORD)]
    every = sorted((cell for network in given.networks for cell in cells(network)), key=order)
    for cell in every:
        if given.table or cell in known:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="cell-") as folder:
            try:
                row = measure(cell, Path(folder))
            except DeadweightError as error:
                row = {"refused": error.what}
        seconds = math.ceil(time.monotonic() - started)
        append(RECORD, {"cell": cell, **row, "seconds": seconds, "machine": machine()})
        print(f"{cell}: {row.get('refused', '')} {seconds} s", file=sys.stderr, flush=True)
    print("\n\n".join(table(recorded(RECORD), network) for network in given.networks))


if __name__ == "__main__":
    main()
