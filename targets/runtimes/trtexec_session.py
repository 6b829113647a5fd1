"""An engine through trtexec, as a `Session`: every run is a process of TensorRT's own program.

For boards whose Python has no TensorRT. trtexec takes inputs as files of raw numbers and gives outputs as
JSON, with six digits. It does not say what an engine's inputs are: that comes from the record that the build
wrote. Without one, an engine can only be timed, on trtexec's random numbers.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..artifact import json_of
from ..engines.content import profile_of, runs_of
from ..engines.log import Line, is_simulated
from ..engines.plugins import check_plugins, given_plugins, library_facts
from ..engines.record import check_record, read_record
from ..engines.trtexec import (
    WARM_UP_MS,
    loading_flags,
    plugin_flags,
    profile_flags,
    run_trtexec,
    shapes_flag,
    timing_flags,
    version_of,
)
from ..errors import MISFITS, ModelError, TargetError, reported
from ..machine.board_facts import find_trtexec
from ..machine.probe import evidence
from ..onnx_file import End
from ..timing.inputs import check_batch, fed
from .session import ProcessTimes, TensorSpec, checked_inputs
from .trt_memory import Part

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..timing.measurement import Protocol
    from .session import Arrays

_Ends = Tuple[Tuple[End, ...], Tuple[End, ...]]
_MIB = 1 << 20
_WEIGHTS = ((r"engine deserialization: CPU [+-]\d+, GPU \+(\d+)", _MIB),)
_ACTIVATIONS = (
    (r"Allocated activation device memory of size (\d+)", 1),
    (r"execution context with device memory size: ([\d.]+) MiB", _MIB),
    (r"IExecutionContext creation: CPU [+-]\d+, GPU \+(\d+)", _MIB),
)


class TrtexecSession:
    """An engine that trtexec opens anew for every run; see `Session`. `ends` is None where unknown."""

    def __init__(
        self, plan: Path, *, program: Path, record: Optional[Mapping[str, Any]], ends: Optional[_Ends]
    ) -> None:
        self._plan, self._program, self._record, self._ends = plan, program, record, ends
        self._version = version_of(program)
        self.runtime = f"trtexec of TensorRT {self._version}"
        self.inputs, self.outputs = (tuple(map(_spec, side)) for side in ends or ((), ()))
        self._lines: List[Line] = []
        self._io_bytes: Optional[int] = None
        self._layers = ""
        self._closed = False

    @property
    def evidence(self) -> str:
        built = None if self._record is None else self._record["evidence"]
        return "simulated" if is_simulated(self._lines) or built == "simulated" else evidence()

    def run(self, inputs: Arrays) -> Dict[str, NDArray[Any]]:
        feeds = self._checked(inputs)
        flags = ["--warmUp=0", "--duration=0", "--iterations=1", "--verbose"]
        [text] = self._start(flags, feeds, doing="run", exports=["Output"])
        outputs = self._outputs(text)
        self._io_bytes = sum(array.nbytes for array in (*feeds.values(), *outputs.values()))
        return outputs

    def prepare(self, inputs: Arrays) -> Callable[[], object]:
        """A function that starts a process. `Runtime.time_process` times engines, and never by this."""
        feeds = self._checked(inputs)
        return lambda: self.run(feeds)

    def timed(self, protocol: Protocol, inputs: Optional[Arrays], *, graph: bool) -> ProcessTimes:
        """The GPU's time of every run in one process."""
        arrays = fed(self, inputs, batch=protocol.batch, seed=protocol.seed)
        if inputs is None:
            check_batch(self._plan, arrays, protocol.batch)
        feeds = self._checked(arrays)
        flags = timing_flags(version=self._version, graph=graph, duration_s=protocol.event_s)
        [text] = self._start(flags, feeds, doing="time", exports=["Times"])
        times_s = runs_of(_json(text, self._program), where="trtexec's export", after_s=WARM_UP_MS / 1e3)
        wall_ns = np.maximum(np.rint(1e9 * np.asarray(times_s)), 1).astype(np.int64)
        if not wall_ns.size:
            raise ModelError(
                f"{self._program} timed no run of {self._plan.name} after its warm-up.",
                "Give each event more time: --event-s 1.",
            )
        how = f"{self.runtime}{' with a CUDA graph' if graph else ''}"
        return ProcessTimes(
            wall_ns,
            evidence=self.evidence,
            inputs=tuple(f"{array.dtype}{list(array.shape)}" for array in feeds.values()),
            remark=f"timed by {how}, every event in a new process: the GPU's time of a run, without copies "
            "and without the host's launch and wait",
        )

    def layer_times(self, inputs: Arrays) -> Dict[str, List[float]]:
        feeds = self._checked(inputs)
        flags, exports = profile_flags(version=self._version), ["Profile", "LayerInfo"]
        text, self._layers = self._start(flags, feeds, doing="profile", exports=exports)
        times = profile_of(_json(text, self._program), where="trtexec's export")
        return {name: [time] for name, time in times.items()}

    def inspect(self) -> str:
        if not self._layers:
            self.layer_times(fed(self, None, batch=1))
        return self._layers

    def memory(self) -> Tuple[Part, ...]:
        """What trtexec's log says of it; most parts only after a run."""
        where = "the log of trtexec, whole MiB"
        return (
            Part("plan", self._plan.stat().st_size, "size of the file"),
            Part("weights", _last(_WEIGHTS, self._lines), where),
            Part("activations", _last(_ACTIVATIONS, self._lines), where),
            Part("io", self._io_bytes, "arrays of inputs and outputs"),
            Part("opening", None, "trtexec does not say"),
            Part("context", None, "trtexec does not say"),
        )

    def close(self) -> None:
        self._closed = True

    def _checked(self, inputs: Arrays) -> Dict[str, NDArray[Any]]:
        if self._ends is None and inputs:
            raise ModelError(
                f"The inputs of {self._plan.name} are unknown: trtexec does not say, and there is no record.",
                "Build it with deadweight build, which writes a record beside it.",
            )
        feeds = checked_inputs(self.inputs, inputs, model=self._plan.name)
        for name, (low, _, high) in ({} if self._record is None else self._record["profiles"]).items():
            shape = feeds[name].shape
            if not all(a <= size <= b for a, size, b in zip(low, shape, high)):
                raise ModelError(
                    f"{self._plan.name} accepts '{name}' from {low} to {high}, but got {list(shape)}.",
                    "Split the batch, or build for larger sizes: --batch or --shapes of deadweight build.",
                )
        return feeds

    def _start(
        self, flags: Sequence[str], feeds: Mapping[str, NDArray[Any]], *, doing: str, exports: Sequence[str]
    ) -> List[str]:
        """Runs the engine in one process; returns the texts of the files that it exports."""
        if self._closed:
            raise ModelError(f"{self._plan.name} is closed.", "Open it again.")
        dynamic = {spec.name for spec in self.inputs if None in spec.shape}
        shapes = {name: array.shape for name, array in feeds.items() if name in dynamic}
        core = None if self._record is None else self._record["settings"]["dla_core"]
        files = {name: f"{index}.bin" for index, name in enumerate(feeds)}
        command = [
            f"--loadEngine={self._plan.absolute()}",
            *flags,
            *(f"--export{what}={what.lower()}.json" for what in exports),
            *loading_flags(files),
            *shapes_flag("shapes", shapes),
            *([] if core is None else [f"--useDLACore={core}"]),
            *plugin_flags([str(Path(each).resolve()) for each in given_plugins()], version=self._version),
        ]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            for name, array in feeds.items():
                (folder / files[name]).write_bytes(_raw(array, name, self._version))
            doing = f"{doing} {self._plan.name}"
            _, self._lines = run_trtexec(self._program, command, doing=doing, folder=folder)
            return [_written(folder / f"{what.lower()}.json", self._program) for what in exports]

    def _outputs(self, text: str) -> Dict[str, NDArray[Any]]:
        dtypes = {spec.name: spec.dtype for spec in self.outputs}
        unreadable = f"The outputs of {self._plan.name} that {self._program} wrote cannot be read"
        cure = "Run trtexec in a shell with --exportOutput=FILE, and report the file's beginning."
        with reported(ModelError, unreadable, cure, *MISFITS):
            return {
                entry["name"]: np.array(entry["values"], dtypes.get(entry["name"], "float32")).reshape(
                    [int(size) for size in entry["dimensions"].split("x") if size]
                )
                for entry in _json(text, self._program)
            }


def open_trtexec(plan: Path) -> TrtexecSession:
    """Opens an engine on this board; it is read when it runs."""
    if not plan.is_file():
        raise ModelError(f"There is no engine at {plan}.", "Check the path, or build it: deadweight build.")
    program = find_trtexec()
    if program is None:
        raise TargetError(
            f"{plan.name} is to be run by trtexec, which is not here.",
            "Put trtexec into the PATH (sudo apt install libnvinfer-bin), or use the Python bindings: omit "
            "--runtime, or sudo apt install python3-libnvinfer.",
        )
    record = read_record(plan)
    if record is not None:
        check_record(record, plan, flavour="tensorrt", version=version_of(program), compute_capability=None)
        check_plugins(record, plan, [library_facts(path) for path in given_plugins()])
    return TrtexecSession(plan, program=program, record=record, ends=_ends(record))


def _ends(record: Optional[Mapping[str, Any]]) -> Optional[_Ends]:
    if record is None or "inputs" not in record:
        return None
    with reported(ModelError, "The record of the engine has another form", "Build it again.", *MISFITS):
        inputs, outputs = (
            tuple(End(str(name), str(dtype), tuple(map(int, shape))) for name, dtype, shape in record[side])
            for side in ("inputs", "outputs")
        )
    return inputs, outputs


def _spec(end: End) -> TensorSpec:
    return TensorSpec(end.name, tuple(None if size < 0 else size for size in end.shape), end.dtype)


def _raw(array: NDArray[Any], name: str, version: str) -> bytes:
    """An input as trtexec reads it. TensorRT has no int64 before 10: such inputs are int32 there."""
    if array.dtype == np.int64 and int(version.split(".")[0]) < 10:
        limits = np.iinfo(np.int32)
        if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
            raise ModelError(
                f"'{name}' has values beyond 32 bits, and TensorRT {version} has no int64.",
                "Give smaller numbers.",
            )
        array = array.astype(np.int32)
    return array.tobytes()


def _written(path: Path, program: Path) -> str:
    cure = "It may be a script that passes no flags on: put NVIDIA's trtexec first in the PATH."
    with reported(TargetError, f"{program} ended without an error, but wrote no {path.name}", cure):
        return path.read_text(encoding="utf-8", errors="replace")


def _json(text: str, program: Path) -> Any:
    """What trtexec exports; it writes nan and inf as C++ does, which is not JSON."""
    words = {"nan": "NaN", "-nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    text = re.sub(r"(?<=[\s,\[:])-?(?:nan|inf)(?=[\s,\]}])", lambda match: words[match.group()], text)
    cure = "It may have been cut: check the space in the folder for temporary files."
    with reported(TargetError, f"{program} wrote a file that is not JSON", cure, ValueError):
        return json_of(text)


def _last(patterns: Sequence[Tuple[str, int]], lines: Sequence[Line]) -> Optional[int]:
    """The last figure of the first pattern that the log has, in bytes."""
    for words, unit in patterns:
        found = [match.group(1) for _, text in lines for match in re.finditer(words, text)]
        if found:
            return round(float(found[-1]) * unit)
    return None
