"""The schema of report.json, version 1, as typed dictionaries.

Type checkers check the code that writes a report, and `validate_report` checks a file that is read. Unknown
keys are refused: a misspelt figure would otherwise be missing from the page without an error. `None` means
"not measured", never zero.

Shares are between 0 and 1, times are in seconds, sizes in bytes. A change of score is the new score minus
the original's, in the score's own unit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict

from ...targets.artifact import read_json
from ...targets.errors import ArtifactError, meant_and

VERSION = 1
Outcome = Literal["faster", "slower", "equal", "cannot_tell"]

_known: set[str] = set()  # every key that a report may have somewhere
_Kind = TypeVar("_Kind")


def _closed(kind: type[_Kind]) -> type[_Kind]:
    _known.update(kind.__annotations__)
    return with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))(kind)


@_closed
class Verdict(TypedDict):
    """The judgement of the run: `candidate` (a row's name) against the first row.

    `ratio` is the original's time over the candidate's: above 1 the candidate is faster. `low` and `high`
    are its interval at `confidence` (0.95), None if the events were too few for one. `events` is the number
    of independent repetitions, `smallest_visible` the smallest ratio above 1 that the run could detect,
    `reason` why it cannot tell, `by` the processor, runtime and precision.
    """

    outcome: Outcome
    ratio: float | None
    low: float | None
    high: float | None
    confidence: float
    sentence: str
    candidate: NotRequired[str]
    events: NotRequired[int | None]
    smallest_visible: NotRequired[float | None]
    reason: NotRequired[str]
    by: NotRequired[str]


@_closed
class Latency(TypedDict):
    """Percentiles of `n` timed calls, in seconds; p50 with its interval where there is one.

    `p99_bound` is the upper bound of p99 with 95 % confidence; None if the calls were too few for one.
    """

    p50: float
    p95: float
    p99: float
    p50_low: float | None
    p50_high: float | None
    n: int
    p99_bound: NotRequired[float | None]


@_closed
class Speedup(TypedDict):
    """The first row's time over this one's, judged; no interval if the events were too few for one."""

    outcome: Outcome
    ratio: float
    low: float | None
    high: float | None


@_closed
class Row(TypedDict):
    """One network; the first is the original. `ota_bytes`, the bytes to send, exists with a budget for it.

    `engine_score` is the score of the engine that a board built from it and ran. `broken` has a sentence for
    each budget that it breaks. `left_out` are the scores without each of some equal parts of the samples,
    where there are controls.
    """

    name: str
    score: float | None
    parameters: int | None
    macs: int | None
    file_bytes: int | None
    latency_s: Latency | None
    memory_bytes: int | None
    speedup: Speedup | None
    ota_bytes: NotRequired[int | None]
    engine_score: NotRequired[float | None]
    broken: NotRequired[list[str]]
    left_out: NotRequired[list[float]]


@_closed
class Control(Row):
    """A network that shows whether the method mattered; `words` has the sentences on it."""

    words: NotRequired[str]


@_closed
class Width(TypedDict):
    """The units of one group before and after."""

    group: str
    kind: str
    before: int
    after: int


@_closed
class LayerVerdict(Speedup):
    """One layer compared with the same layer of the first row, corrected for the number of layers.

    `reason` says why a pruned layer did not get faster; it is empty if there is no reason to give.
    """

    pruned: bool
    reason: str


@_closed
class Layer(TypedDict):
    """One layer's time in each network that has it: row name -> seconds; and its judgement."""

    name: str
    kind: NotRequired[str]
    latency_s: dict[str, float | None]
    judged: NotRequired[dict[str, LayerVerdict]]


@_closed
class UnitLists(TypedDict):
    """One entry per unit of the group, as in the statistics; `removed` says whether pruning removed it."""

    mean: list[float]
    std: list[float]
    zero_share: list[float]
    removed: list[bool]


@_closed
class SweepControl(TypedDict):
    """A control of one setting: its mean score, and how much higher the setting's network scores.

    `low` and `high` are the 95 % interval of that difference over the seeds, `p` that of the sign-flip test;
    None with one seed.
    """

    score: float
    difference: float
    low: float | None
    high: float | None
    p: float | None


@_closed
class SweepRow(TypedDict):
    """One setting of a sweep. `raw_score` is the score before tuning; `parameters_removed` is a share.

    Over several seeds figures are means, `score_spread` and `raw_spread` the standard deviations of the
    scores, and the speed-up is that of the first seed. `front` marks what no other setting beats.
    """

    settings: dict[str, Any]
    score: float | None
    raw_score: float | None
    score_change: float | None
    parameters: int
    parameters_removed: float
    macs: int | None
    file_bytes: int | None
    speedup: Speedup | None
    chosen: bool
    split: str
    seeds: NotRequired[int]
    score_spread: NotRequired[float | None]
    raw_spread: NotRequired[float | None]
    front: NotRequired[bool]
    controls: NotRequired[dict[str, SweepControl]]


@_closed
class Sweep(TypedDict):
    """All settings that were tried, the names of what was varied, and what came of it in words."""

    settings: list[str]
    rows: list[SweepRow]
    words: NotRequired[list[str]]


@_closed
class Budget(TypedDict):
    """A limit of the recipe. `met` is None where the value was not measured."""

    name: str
    limit: float
    value: float | None
    met: bool | None


@_closed
class Ship(TypedDict):
    """The row to ship, None if each breaks a budget; the sentence says why, "" if nothing was measured."""

    network: str | None
    sentence: str


@_closed
class WidthCurve(TypedDict):
    """A network's predicted time over the width of one group: pairs of width and seconds.

    `free` is the most units for the same time, `cliff` the next width beyond with its seconds; `pays` says
    whether narrowing the group alone saves more than the noise.
    """

    group: str
    width: int
    points: list[tuple[int, float]]
    free: int
    cliff: tuple[int, float] | None
    saved_s: float
    pays: bool


@_closed
class TriedPlan(TypedDict):
    """A plan of the stage budget that was cut and timed: seconds are a median and, at most, with 99 %.

    `damage` is the rise of the validation loss that was predicted, `score` on validation, not tuned.
    """

    widths: dict[str, int]
    seconds: float
    high_s: float
    predicted_s: float
    damage: float
    score: float
    kept: bool
    chosen: bool


@_closed
class Search(TypedDict):
    """What the stage budget found: pairs of seconds and damage of the best plans, and those it tried.

    `factor` is the interval of a prediction: times as long, or as short.
    """

    limit_s: float
    whole_s: float
    factor: float
    front: list[tuple[float, float]]
    tried: list[TriedPlan]
    curves: list[WidthCurve]
    said: list[str]


@_closed
class StageTime(TypedDict):
    """A stage of the run: the seconds it took when it last ran, and whether it came from the cache."""

    name: str
    seconds: float
    cached: bool
    settings: dict[str, Any]


@_closed
class Report(TypedDict):
    """report.json. Parts that a run does not have are left out: a sweep, statistics, layers, budgets."""

    schema: Literal[1]
    name: str
    created: str
    verdict: Verdict
    rows: list[Row]
    score_name: str
    higher_is_better: bool
    conditions: dict[str, Any]
    protocol: dict[str, Any]
    stages: list[StageTime]
    controls: NotRequired[list[Control]]
    words: NotRequired[list[str]]
    widths: NotRequired[list[Width]]
    layers: NotRequired[list[Layer]]
    statistics: NotRequired[dict[str, UnitLists] | None]
    sweep: NotRequired[Sweep | None]
    search: NotRequired[Search | None]
    budgets: NotRequired[list[Budget]]
    ship: NotRequired[Ship]


def validate_report(value: object, source: str = "report.json") -> Report:
    """The value, if it is a report of this version; `source` names it in messages.

    Raises:
        ArtifactError: another version, a missing or unknown key, a value of the wrong type, or lists of
            different lengths. The message names the first such key.
    """
    if isinstance(value, dict) and "schema" in value and value["schema"] != VERSION:
        raise ArtifactError(
            f"{source} has schema {value['schema']!r}; this version of deadweight reads schema {VERSION}.",
            "Read it with the version that wrote it, or run the recipe again to make it again.",
        )
    try:
        report = TypeAdapter(Report).validate_python(value)
    except ValidationError as error:
        raise _refused(error, source) from error
    if not report["rows"]:
        raise _inconsistent(source, "rows is empty: there is no original to compare with")
    for group, units in (report.get("statistics") or {}).items():
        if len({len(units["mean"]), len(units["std"]), len(units["zero_share"]), len(units["removed"])}) > 1:
            raise _inconsistent(source, f"the lists of statistics.{group} differ in length")
    sweep = report.get("sweep")
    for at, row in enumerate(sweep["rows"] if sweep else []):
        if not 0 <= row["parameters_removed"] <= 1:
            found = f"sweep.rows[{at}].parameters_removed is {row['parameters_removed']}"
            raise _inconsistent(source, f"{found}, not a share between 0 and 1")
    return report


def read_report(directory: Path) -> Report:
    """The report.json of a run's directory.

    Raises:
        ArtifactError: it is missing, is not JSON, or is not a report of this version.
    """
    path = Path(directory) / "report.json"
    if not path.exists():
        raise ArtifactError(
            f"{path} does not exist, so there is nothing to report.",
            "Give the directory of a finished run, or finish it: deadweight run RECIPE --out DIR.",
        )
    return validate_report(read_json(path), str(path))


def _inconsistent(source: str, what: str) -> ArtifactError:
    return ArtifactError(f"{source} is not a report: {what}.", _CURE)


def _refused(error: ValidationError, source: str) -> ArtifactError:
    first = error.errors(include_url=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    key = path.lstrip(".") or "the whole file"
    if first["type"] == "missing":
        return ArtifactError(f"{source} lacks the key {key}.", _CURE)
    if first["type"] == "extra_forbidden":
        cure = meant_and(str(first["loc"][-1]), sorted(_known), _CURE)
        return ArtifactError(f"{source} has the unknown key {key}.", cure)
    return ArtifactError(f"{source}: {key} is {first['input']!r:.80}: {first['msg']}.", _CURE)


_CURE = "It was edited or damaged. Run the same recipe again: the report is made again from finished stages."
