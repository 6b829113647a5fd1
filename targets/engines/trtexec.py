"""The interface to trtexec, which builds and times engines on boards whose Python has no TensorRT.

It is TensorRT's program, controlled by flags; `content.py` reads the JSON it exports. Its defaults changed in
version 11 (no transfers, spinning, a CUDA graph), so every relevant flag is set explicitly, and timings of
different versions are comparable. Its version is one number: v8412 is 8.4.12, v100300 is 10.3.0. A build has
the usual record; facts that only Python can read are empty.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..artifact import writing
from ..errors import ModelError, TargetError
from .build_settings import Made, Prepared, Profile, profiles_for, typing_of
from .log import Line, cause, reason
from .plugins import library_facts

_SEVERITIES = {"V": "verbose", "I": "info", "W": "warning", "E": "error", "F": "internal_error"}
_MIB = 1 << 20
_STANDALONE = ["--buildDLAStandalone", "--inputIOFormats=fp16:chw16", "--outputIOFormats=fp16:chw16"]
_OLDEST = (8, 4)
WARM_UP_MS = 500
"""In every process before the first run that counts. TensorRT 8.4 exports the warm-up too."""


def version_in(output: str) -> str:
    """TensorRT's version, as in `10.3.0`, from trtexec's banner."""
    match = re.search(r"\[TensorRT v(\d+)\]", output)
    if match is None:
        raise TargetError(
            "trtexec does not print its TensorRT version.",
            "Run it in a shell: /usr/src/tensorrt/bin/trtexec --help",
        )
    number = int(match.group(1))
    base = 1000 if number < 10_000 else 10_000
    return f"{number // base}.{number % base // 100}.{number % 100}"


@lru_cache(maxsize=4)
def version_of(program: Path) -> str:
    """The version of TensorRT that a trtexec belongs to."""
    version, _ = run_trtexec(program, ["--help"], doing="say its version", limit_s=120.0)
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        raise TargetError(
            f"{program} is of TensorRT {version}; 8.4 is the oldest whose flags are known here.",
            "Update the board: JetPack 5 has 8.5.2, DriveOS 6.0.5 has 8.4.12.",
        )
    return version


def build_by_trtexec(program: Path, prepared: Prepared, plan: Path) -> Made:
    """Builds the plan by the program, as a part of `build_engine`."""
    model, settings, version = prepared.model, prepared.settings, prepared.version
    dimensions = {end.name: end.shape for end in prepared.file.inputs}
    profiles = profiles_for(dimensions, batch=settings.batch, given=settings.shapes, model=model.name)
    plugins = [library_facts(path) for path in settings.plugins]
    flags = build_flags(prepared, plan, profiles)
    lines, used, why = run_with_timings(program, flags, prepared.timings, doing=f"build {model.name}")
    if not plan.is_file() or not plan.stat().st_size:
        raise ModelError(
            f"trtexec ended without an error, but wrote no engine of {model.name}: {reason(lines)}.",
            f"Check the free space at {plan.parent}, and that {program} is NVIDIA's program.",
        )
    strong = "--stronglyTyped" in flags or int(version.split(".")[0]) >= 11
    named = [flag for flag in flags if not flag.startswith(("--onnx", "--saveEngine"))]
    more: Dict[str, Any] = {"by": str(program), "refused_by_dla": [], "plugins": plugins}
    return Made(strong, named, profiles, (used, why), lines, more)


def run_with_timings(
    program: Path, flags: Sequence[str], timings: Optional[Path], *, doing: str
) -> Tuple[List[Line], bool, str]:
    """Builds with a copy of the stored kernel timings, which replaces them when the build was successful.

    Returns the log, whether the timings were used, and why not. trtexec fails over timings that it cannot
    read; then it is run again without them.
    """
    if timings is None:
        return run_trtexec(program, flags, doing=doing)[1], False, "the GPU is unknown here"
    with tempfile.TemporaryDirectory() as folder:
        copy, used, why = Path(folder) / "timings", timings.is_file(), "there were none"
        flags = [*flags, f"--timingCacheFile={copy}"]
        if used:
            shutil.copyfile(str(timings), str(copy))
            why = ""
        try:
            _, lines = run_trtexec(program, flags, doing=doing)
        except ModelError as error:
            if not used or not re.search(r"timing ?cache", error.what, re.IGNORECASE):
                raise
            used, why = False, error.what
            copy.unlink()
            _, lines = run_trtexec(program, flags, doing=doing)
        if copy.is_file():
            with writing(timings) as beside:
                shutil.copyfile(str(copy), str(beside))
    return lines, used, why


def build_flags(prepared: Prepared, plan: Path, profiles: Mapping[str, Profile]) -> List[str]:
    """The flags that build a plan as Python's bindings do."""
    model, settings, version = prepared.model, prepared.settings, prepared.version
    major, minor = (int(part) for part in version.split(".")[:2])
    flags = [f"--onnx={model}", f"--saveEngine={plan}", "--verbose"]
    flags.append(f"--profilingVerbosity={'none' if settings.hide_layers else 'detailed'}")
    flags += ["--skipInference"] if (major, minor) >= (8, 6) else ["--buildOnly"]
    strong, names = typing_of(
        prepared.file, settings, name=model.name, strong=major >= 10, weak=major <= 10, bf16=major == 10
    )
    # With --int8 for a model without Q/DQ, trtexec uses random ranges.
    flags += ["--stronglyTyped"] if strong and major == 10 else [f"--{name.lower()}" for name in names]
    for index, name in enumerate(("minShapes", "optShapes", "maxShapes")):
        flags += shapes_flag(name, {key: shapes[index] for key, shapes in profiles.items()})
    if prepared.limits:
        flags.append(f"--memPoolSize=workspace:{max(1, prepared.limits['workspace_bytes'] // _MIB)}")
    flags += ["--sparsity=enable"] if settings.sparse else []
    flags += ["--versionCompatible"] if settings.version_compatible else []
    if settings.hardware_compatibility:
        flags.append(f"--hardwareCompatibilityLevel={settings.hardware_compatibility.replace('_plus', '+')}")
    if settings.optimization_level is not None:
        flags.append(f"--builderOptimizationLevel={settings.optimization_level}")
    if settings.dla_core is not None:
        flags.append(f"--useDLACore={settings.dla_core}")
        flags += _STANDALONE if settings.standalone else ["--allowGPUFallback"]
    flags += [f"--calib={settings.calibration_cache}"] if settings.calibration_cache else []
    return [*flags, *plugin_flags(settings.plugins, version=version)]


def plugin_flags(libraries: Sequence[str], *, version: str) -> List[str]:
    """The flags that load plugin libraries, before a build or before an engine is opened."""
    old = tuple(map(int, version.split(".")[:2])) < (8, 6)
    return [f"--{'plugins' if old else 'staticPlugins'}={library}" for library in libraries]


def timing_flags(*, version: str, graph: bool, duration_s: float) -> List[str]:
    """The flags that time a plan equally on every version: spinning, no transfers, the same warm-up."""
    flags = [f"--warmUp={WARM_UP_MS}", f"--duration={duration_s:g}"]
    if int(version.split(".")[0]) >= 11:
        return [*flags, *([] if graph else ["--noCudaGraph"])]
    return [*flags, "--useSpinWait", "--noDataTransfers", *(["--useCudaGraph"] if graph else [])]


def profile_flags(*, version: str) -> List[str]:
    """The flags that time layers in a separate run, as version 11 always does."""
    separate = [] if int(version.split(".")[0]) >= 11 else ["--separateProfileRun"]
    return ["--profilingVerbosity=detailed", *separate]


def loading_flags(files: Mapping[str, str]) -> List[str]:
    """The flag that loads inputs from files of raw numbers, by name."""
    each = (f"{_quoted(name)}:{file}" for name, file in files.items())
    return [f"--loadInputs={','.join(each)}"] if files else []


def shapes_flag(flag: str, shapes: Mapping[str, Sequence[int]]) -> List[str]:
    """A flag of shapes, as in `--minShapes=x:1x3x32x32`; none without shapes."""
    each = (f"{_quoted(name)}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return [f"--{flag}={','.join(each)}"] if shapes else []


def _quoted(name: str) -> str:
    return f"'{name}'" if ":" in name else name


def run_trtexec(
    program: Path,
    flags: Sequence[str],
    *,
    doing: str,
    folder: Optional[Path] = None,
    limit_s: float = 7200.0,
) -> Tuple[str, List[Line]]:
    """Runs trtexec in a folder; returns TensorRT's version and the log."""
    try:
        done = subprocess.run(
            [str(program), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(
            f"trtexec did not {doing} in {limit_s:.0f} s, and was ended.",
            f"See where it hangs, in a shell: {program} {' '.join(flags)}",
        ) from error
    except OSError as error:
        raise TargetError(
            f"{program} cannot be started: {error}.", "Install it again with TensorRT."
        ) from error
    lines = lines_of(done.stdout)
    if done.returncode < 0:
        number = -done.returncode
        raise ModelError(
            f"trtexec could not {doing}: signal {number} ended it; {_why([], done.stdout)}.",
            "The system ends a program when memory runs out: free some, or set a smaller --workspace-bytes."
            if number == signal.SIGKILL
            else f"This is a crash inside TensorRT. Run it in a shell: {program} {' '.join(flags)}",
        )
    if done.returncode:
        memory = "Free some memory, or set a smaller --workspace-bytes."
        usual = "Check it for unsupported operators: deadweight lint MODEL --target NAME."
        raise ModelError(
            f"trtexec could not {doing}: {_why(lines, done.stdout)} (exit code {done.returncode}).",
            {"memory": memory, "profile": "Give --batch or --shapes; to time it, --inputs."}.get(
                cause(lines), usual
            ),
        )
    return version_in(done.stdout), lines


def _why(lines: Sequence[Line], output: str) -> str:
    """Its errors, or else its last line."""
    if any(severity in ("error", "internal_error") for severity, _ in lines):
        return reason(lines)
    last = next((line.strip()[:200] for line in reversed(output.splitlines()) if line.strip()), "nothing")
    return f"it printed last: {last.rstrip('.')}"


def lines_of(output: str) -> List[Line]:
    """The log in the form of the Python bindings; continuation lines belong to the previous one."""
    lines: List[Line] = []
    for line in output.splitlines():
        found = re.match(r"\[[\d/]+-[\d:]+\] \[([VIWEF])\] (?:\[TRT\] )?(.*)", line)
        if found:
            lines.append((_SEVERITIES[found.group(1)], found.group(2)))
        elif lines and line.strip():
            lines[-1] = (lines[-1][0], f"{lines[-1][1]}\n{line}")
    return lines
