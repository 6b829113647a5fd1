"""The times in files that trtexec exports, and in those of an IProfiler: of layers, and of runs."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Tuple

import numpy as np

from ..errors import ArtifactError


def profile_of(content: Any, *, where: str = "the profile") -> Dict[str, float]:
    """Seconds of a run by layer, in order: the median, where the profiler has one, else the mean.

    Raises:
        ArtifactError: it is neither trtexec's profile nor an IProfiler's times.
    """
    try:
        if isinstance(content, Mapping) and content:
            if any(isinstance(times, list) and not times for times in content.values()):
                raise ValueError("a layer has no times")
            return {str(name): float(np.median(times)) / 1e3 for name, times in content.items()}
        entries = [entry for entry in content if "name" in entry]
        runs = next((int(entry["count"]) for entry in content if "count" in entry), 1)
        seconds: Dict[str, float] = {}
        for entry in entries:
            time = entry.get("medianMs", entry.get("averageMs"))
            time = float(entry["timeMs"]) / max(runs, 1) if time is None else float(time)
            seconds[entry["name"]] = seconds.get(entry["name"], 0.0) + time / 1e3
        if not seconds:
            raise ValueError("no layer has a time")
        return seconds
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{where} has no times of layers: {error}.", "Give the file of trtexec --exportProfile=FILE."
        ) from error


def runs_of(content: Any, *, where: str = "the times", after_s: float = 0.0) -> Tuple[float, ...]:
    """GPU seconds of each run of the whole engine that began `after_s`, from trtexec --exportTimes.

    Raises:
        ArtifactError: it is not JSON of trtexec.
    """
    try:
        counted = (each for each in content if not after_s or each["startComputeMs"] >= 1e3 * after_s)
        return tuple(float(entry["computeMs"]) / 1e3 for entry in counted)
    except (TypeError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{where} has no times of runs: {type(error).__name__} at {error}.",
            "Give the file of trtexec --exportTimes=FILE.",
        ) from error
