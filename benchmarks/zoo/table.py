"""What the zoo measured, as Markdown: the sums, by family, and one row a network."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
CLOSE = 1e-4
OVER_FROZEN = 1.3
SOUND = ("exact", "up to norms")
NUMBERS = ("error", "onnx", "other_batch")
PARTS = {
    "trace": "trace",
    "surgery": "surgery, with its proof of the outputs",
    "outputs": "proof of the outputs, alone",
    "gradients": "gradients",
    "sizes": "other sizes",
    "pickled": "pickle",
    "saved": "saved and loaded",
}
WIDE = ("gradients", "sizes", "pickled", "saved")


def right(row: Row) -> bool:
    """Whether everything that was tried of a row held."""
    if any(key in row for key in ("crashed", "gave_up", "refused")):
        return False
    if row["tool"] == "ours":
        if row["kept_over_asked"] > OVER_FROZEN and not _said(row):
            return False
        return not (_wrong(row) or row.get("failed"))
    return row["correct"] in SOUND and row["other_batch"] is not None and row["trains"] is True


def _said(row: Row) -> bool:
    """Whether something says why less went than was asked for."""
    return bool(row["frozen"]) or "were not pruned" in row["why"]


def _wrong(row: Row) -> list[str]:
    """The columns of a row of ours that did not hold; one that was left out is none."""
    close = [key for key in NUMBERS if key in row and not (isinstance(row[key], float) and row[key] <= CLOSE)]
    judged = [key for key in ("gradients", "gradients_training") if _above(row.get(key))]
    judged += [key for key in ("judged", "second") if row.get(key) == "wrong"]
    sizes = row.get("sizes") or {}
    judged += [f"sizes: {axis}" for axis, value in sizes.items() if _above(value)]
    told = [key for key in ("trains", "disk") if key in row and row[key] is not True]
    return close + judged + told


def _above(value: Any) -> bool:
    return isinstance(value, float) and not value <= CLOSE


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
    if row["kept_over_asked"] > OVER_FROZEN and not _said(row):
        return f"keeps {row['kept_over_asked']:.2f} of what was asked"
    return ", ".join(f"{key} {row.get(key, '')}" for key in _wrong(row))


def tables(rows: Sequence[Row], names: Sequence[str]) -> str:
    """All tables for these networks; those not measured yet are named."""
    by = {(row["tool"], row["name"]): row for row in rows}
    ours = [by["ours", name] for name in names if ("ours", name) in by]
    rival = [by["rival", name] for name in names if ("rival", name) in by]
    missing = [f"{name} ({tool})" for tool in ("ours", "rival") for name in names if (tool, name) not in by]
    parts = [_sums(ours, rival), _wide(ours), _costs(ours), _beside(ours, by)]
    parts += [_families(ours, rival), _networks(names, by)]
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
        times = [row["peak_bytes"] / sum(row[size] for size in sizes) for row in cut if "peak_bytes" in row]
        if times:
            least = f"{statistics.median(times):.1f}, {sum(one <= 2 for one in times)} of {len(times)}"
            lines.append(f"| memory over {of}: median, at most twice in | {least} | not measured |")
    frozen = sum(row["kept_over_asked"] > OVER_FROZEN for row in cut)
    lines.append(f"| keeps over {OVER_FROZEN} times what was asked | {frozen} | not judged |")
    return "\n".join(lines)


def _wide(ours: Sequence[Row]) -> str:
    """What the judge says beyond one forward pass."""
    cut = [row for row in ours if "form" in row]
    lines = ["| beyond one forward pass | right | fixed, and said | not judged | fails |", "| --- " * 5 + "|"]
    for key, title in (
        ("gradients", "gradients, in eval mode"),
        ("gradients_training", "gradients, in training mode (fixed: random)"),
        ("sizes", "every other size that the original takes"),
        ("pickle", "pickle"),
        ("second", "cut once more"),
    ):
        counts: dict[str, int] = dict.fromkeys(("right", "fixed", "unjudged", "fails"), 0)
        for row in (one for one in cut if key in one):
            counts[_outcome(row, key)] += 1
        lines.append(f"| {title} | {' | '.join(map(str, counts.values()))} |")
    return "\n".join(lines)


def _outcome(row: Row, key: str) -> str:
    value = row[key]
    values = list(value.values()) if isinstance(value, dict) else [value]
    if key in row.get("failed", {}) or any(map(_above, values)) or value == "wrong":
        return "fails"
    if value is None or (isinstance(value, str) and value.startswith("unjudged")):
        return "unjudged"
    return "fixed" if any(isinstance(one, str) and one not in SOUND for one in values) else "right"


def _costs(ours: Sequence[Row]) -> str:
    """Each part in forward passes, torch.export's own time not counted."""
    cut = [row for row in ours if "parts" in row]
    lines = ["| cost beyond torch.export, in forward passes | median | worst |", "| --- | --- | --- |"]
    for key, title in PARTS.items():
        lines.append(_spread(title, [row["parts"][key] for row in cut if key in row["parts"]]))
    lines.append(_spread("trace and surgery", [row["cost"] for row in cut]))
    wide = [row["cost"] + sum(row["parts"].get(key, 0.0) for key in WIDE) for row in cut]
    lines.append(_spread("that and the wide proof", wide))
    return "\n".join(lines)


def _spread(title: str, values: Sequence[float]) -> str:
    if not values:
        return f"| {title} | - | - |"
    return f"| {title} | {statistics.median(values):.1f} | {max(values):.0f} |"


def _beside(ours: Sequence[Row], by: Mapping[tuple[str, str], Row]) -> str:
    """What a user waits for, where both tools succeed."""
    both = [
        (row, by["rival", row["name"]]["first_s"])
        for row in ours
        if right(row) and right(by.get(("rival", row["name"]), {"refused": ""}))
    ]
    lines = [f"| over Torch-Pruning's time, {len(both)} networks | median | worst |", "| --- | --- | --- |"]
    lines.append(_spread("whole", [row["first_s"] / rival for row, rival in both]))
    lines.append(_spread("torch.export's share", [row["export_s"] / rival for row, rival in both]))
    shares = [(row["first_s"] - row["export_s"]) / rival for row, rival in both]
    lines.append(_spread("ours alone", shares))
    again = [row for row in ours if row.get("second_s")]
    ratios = [row["second_s"] / row["first_s"] for row in again]
    lines.append(_spread(f"a second cut over the first, {len(again)} networks", ratios))
    return "\n".join(lines)


def _families(ours: Sequence[Row], rival: Sequence[Row]) -> str:
    lines = ["| family | networks | deadweight right | Torch-Pruning right |", "| --- | --- | --- | --- |"]
    for family in dict.fromkeys(row["family"] for row in (*ours, *rival)):
        mine = [row for row in ours if row["family"] == family]
        theirs = [row for row in rival if row["family"] == family]
        counts = (max(len(mine), len(theirs)), sum(map(right, mine)), sum(map(right, theirs)))
        lines.append(f"| {family} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def _networks(names: Sequence[str], by: Mapping[tuple[str, str], Row]) -> str:
    lines = [
        "| network | form | prunable | kept | of asked | error | judge | gradients | other sizes | pickle "
        "| second cut | cost | wide | what did not hold | Torch-Pruning: kept | cost | outcome |",
        "| --- " * 17 + "|",
    ]
    for name in names:
        cells = [name]
        row = by.get(("ours", name))
        if row is None or "form" not in row:
            cells += ["-"] * 12 + [fault(row) if row else "not measured"]
        else:
            cells += [
                row["form"],
                f"{row['prunable']:.2f}",
                f"{row['kept']:.2f}",
                f"{row['kept_over_asked']:.2f}",
            ]
            cells += [_small(row["error"]), str(row.get("judged") or "-").split(":")[0]]
            cells += [_outcome(row, key) if key in row else "-" for key in ("gradients", "sizes", "pickle")]
            second = f"{row['second_s'] / row['first_s']:.2f}" if row.get("second_s") else "-"
            wide = row["cost"] + sum(row.get("parts", {}).get(key, 0.0) for key in WIDE)
            cells += [second, f"{row['cost']:.0f}", f"{wide:.0f}" if "parts" in row else "-"]
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
