"""What the zoo measured, as Markdown: the sums, by family, and one row a network."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
CLOSE = 1e-4
OVER_FROZEN = 1.3
SOUND = ("exact", "up to norms")


def right(row: Row) -> bool:
    """Whether everything that was tried of a row held."""
    if any(key in row for key in ("crashed", "gave_up", "refused")):
        return False
    if row["tool"] == "ours":
        closeness = (row["error"], row["onnx"], row["other_batch"])
        close = all(isinstance(value, float) and value <= CLOSE for value in closeness)
        if row["kept_over_asked"] > OVER_FROZEN and not row["frozen"]:
            return False  # less went than was asked for, and nothing says why
        if row.get("judged") == "wrong":
            return False
        return close and row["trains"] is True and row["disk"] is True and not row.get("failed")
    return row["correct"] in SOUND and row["other_batch"] is not None and row["trains"] is True


def fault(row: Row) -> str:
    """In a few words, what did not hold; '' where all did."""
    for key in ("crashed", "gave_up", "refused"):
        if key in row:
            lines = str(row[key]).strip().splitlines()
            return f"{key.replace('_', ' ')}: {(lines or [''])[-1 if key == 'crashed' else 0][:90]}"
    if row["tool"] == "rival" and row.get("silent"):
        return "runs, and is wrong"
    if row.get("failed"):
        name, text = next(iter(row["failed"].items()))
        return f"{name}: {text[:90]}"
    if right(row):
        return ""
    if row["tool"] == "rival":
        return f"{row['correct']}" if row.get("runs") else "its forward fails"
    if row["kept_over_asked"] > OVER_FROZEN and not row["frozen"]:
        return f"keeps {row['kept_over_asked']:.2f} of what was asked"
    wrong = {key: row.get(key) for key in ("error", "judged", "onnx", "other_batch", "trains", "disk")}
    return ", ".join(f"{key} {value}" for key, value in wrong.items())


def tables(rows: Sequence[Row], names: Sequence[str]) -> str:
    """All tables for these networks; those not measured yet are named."""
    by = {(row["tool"], row["name"]): row for row in rows}
    ours = [by["ours", name] for name in names if ("ours", name) in by]
    rival = [by["rival", name] for name in names if ("rival", name) in by]
    missing = [f"{name} ({tool})" for tool in ("ours", "rival") for name in names if (tool, name) not in by]
    parts = [_sums(ours, rival), _families(ours, rival), _networks(names, by)]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(parts)


def _sums(ours: Sequence[Row], rival: Sequence[Row]) -> str:
    cut = [row for row in ours if "form" in row]
    lines = ["| | deadweight | Torch-Pruning 1.6.1 |", "| --- | --- | --- |"]
    lines.append(f"| networks | {len(ours)} | {len(rival)} |")
    lines.append(f"| right in everything tried | {sum(map(right, ours))} | {sum(map(right, rival))} |")
    silent = [
        sum(row["error"] is None or row["error"] > CLOSE or row.get("judged") == "wrong" for row in cut)
    ]
    silent.append(sum(bool(row.get("silent")) for row in rival))
    lines.append(f"| ran and was wrong | {silent[0]} | {silent[1]} |")
    gave_up = [sum("gave_up" in row for row in both) for both in (ours, rival)]
    lines.append(f"| did not come back | {gave_up[0]} | {gave_up[1]} |")
    lines.append(f"| the user's own class | {sum(row['form'] == 'module' for row in cut)} | all |")
    costs = [[row["cost"] for row in both if "cost" in row] for both in (ours, rival)]
    worded = [f"{statistics.median(some):.1f}, {max(some):.0f}" if some else "-" for some in costs]
    lines.append(f"| cost in forward passes: median, worst | {worded[0]} | {worded[1]} |")
    for of, sizes in (
        ("the network's", ("own_bytes",)),
        ("that and a pass's", ("own_bytes", "forward_bytes")),
    ):
        times = [row["peak_bytes"] / sum(row[size] for size in sizes) for row in cut if "own_bytes" in row]
        if times:
            least = f"{statistics.median(times):.1f}, {sum(one <= 2 for one in times)} of {len(times)}"
            lines.append(f"| memory over {of}: median, at most twice in | {least} | not measured |")
    frozen = sum(row["kept_over_asked"] > OVER_FROZEN for row in cut)
    lines.append(f"| keeps over {OVER_FROZEN} times what was asked | {frozen} | not judged |")
    return "\n".join(lines)


def _families(ours: Sequence[Row], rival: Sequence[Row]) -> str:
    lines = ["| family | networks | deadweight right | Torch-Pruning right |", "| --- | --- | --- | --- |"]
    for family in dict.fromkeys(row["family"] for row in (*ours, *rival)):
        mine = [row for row in ours if row["family"] == family]
        theirs = [row for row in rival if row["family"] == family]
        counts = (max(len(mine), len(theirs)), sum(map(right, mine)), sum(map(right, theirs)))
        lines.append(f"| {family} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def _networks(names: Sequence[str], by: dict[tuple[str, str], Row]) -> str:
    lines = [
        "| network | form | prunable | kept | of asked | error | ONNX | cost | what did not hold "
        "| Torch-Pruning: kept | cost | outcome |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        cells = [name]
        row = by.get(("ours", name))
        if row is None or "form" not in row:
            cells += ["-"] * 7 + [fault(row) if row else "not measured"]
        else:
            cells += [
                row["form"],
                f"{row['prunable']:.2f}",
                f"{row['kept']:.2f}",
                f"{row['kept_over_asked']:.2f}",
            ]
            cells += [_small(row["error"]), _small(row["onnx"]), f"{row['cost']:.0f}"]
            over = row["kept_over_asked"] > OVER_FROZEN
            cells.append(fault(row) or (_reason(row) if over else ""))
        other = by.get(("rival", name))
        if other is None:
            cells += ["-", "-", "not measured"]
        else:
            cells += [
                f"{other[key]:{form}}" if key in other else "-"
                for key, form in (("kept", ".2f"), ("cost", ".0f"))
            ]
            cells.append(fault(other) or str(other["correct"]))
        lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


def _reason(row: Row) -> str:
    reason = str((row["frozen"] or [row["why"]])[0])
    return reason.split(" (/")[0][:120]


def _small(value: Any) -> str:
    return f"{value:.0e}" if isinstance(value, float) else "-"
