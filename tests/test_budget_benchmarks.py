"""The tables of the benchmarks of the stage budget, from planted rows."""

from __future__ import annotations

from typing import Any

from benchmarks.budget import kept, rivals

Row = dict[str, Any]


def scored(method: str, seed: int, *, raw: float, tuned: float) -> Row:
    cell = {"network": "signs", "share": 0.5, "seed": seed, "method": method}
    return {"cell": cell, "whole": {"test": 95.0}, "raw": {"test": raw}, "tuned": {"test": tuned}}


def line(text: str, name: str) -> list[str]:
    (own,) = (row for row in text.splitlines() if row.startswith(f"| {name} |"))
    return [cell.strip() for cell in own.strip("|").split("|")]


def test_a_rival_is_judged_by_paired_differences_and_one_of_another_time_is_not() -> None:
    def widths(seed: int) -> Row:
        times = {"budget": 1.0, "uniform": 1.01, "LAMP": 0.99, "global L2": 0.9}
        return {
            "cell": {"network": "signs", "share": 0.5, "seed": seed},
            "used": 0.97,
            "believed": {"LAMP": 0.8},
            "rows": {name: {"widths": {}, "time": [time, time, time]} for name, time in times.items()},
        }

    rows = [
        scored(method, seed, raw=60 + seed - behind + seed % 2 / 10, tuned=90 + seed + seed % 2 * wide)
        for seed in range(5)
        for method, behind, wide in (
            ("budget", 0, 0),
            ("uniform", 5, 4),
            ("LAMP", -5, 0),
            ("global L2", 9, 0),
        )
    ]
    text = rivals.table("signs", 0.5, [widths(seed) for seed in range(5)], rows)
    assert line(text, "uniform")[5].startswith("+5.00")
    assert line(text, "uniform")[5].endswith("n 5: ahead")
    assert line(text, "uniform")[6].endswith("n 5: cannot tell")
    assert line(text, "LAMP")[2] == "0.80 to 0.80"
    assert line(text, "LAMP")[5].endswith("behind")
    assert line(text, "global L2")[5:] == ["", ""]


def test_a_budget_counts_as_kept_only_where_its_bound_is_below_one() -> None:
    def row(seed: int, used: float, bound: float) -> Row:
        cell = {"network": "cnn", "share": 0.6, "seed": seed}
        return {"cell": cell, "tried": 6, "kept": 3, "used": used, "bound": bound}

    refused: Row = {"cell": {"network": "cnn", "share": 0.6, "seed": 2}, "refused": "too little"}
    text = kept.table([row(0, 0.97, 0.99), row(1, 0.93, 1.01), refused], kept.cells([0]))
    assert "| 60% | 1 of 2 | 97.0%, 93.0% | 101.0% | 1 of 2 | 1 |" in text
    assert "Of 3 runs 2 found one. Judged again, 1 are proven within the budget" in text
