"""ONNX Runtime on the CPU: the runtime of workstations, CI and boards without TensorRT.

The model is loaded from its path, not from bytes, of which the runtime would keep a second copy. Every timed
run uses I/O binding: inputs are bound once, and the runtime allocates outputs. This excludes Python's
overhead (about 3 microseconds per run), which a deployed program does not have.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional

from ..errors import ModelError, TargetError
from ..machine.probe import evidence
from .session import TensorSpec, checked_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .session import Arrays

_DTYPES = {
    "float": "float32",
    "double": "float64",
    **{name: name for name in ("float16", "bool", "uint8", "uint16", "uint32", "uint64")},
    **{name: name for name in ("int8", "int16", "int32", "int64")},
}

_REASONS = (
    (
        r"(\S+) is not a registered function/op|No Op registered for (\S+)|No opset import for domain (\S+)",
        "{file} has an operator unknown to ONNX Runtime {version}: {detail}.",
        "Export the model without that operator, or with an older opset.",
    ),
    (
        r"NOT_IMPLEMENTED|Could not find an implementation",
        "ONNX Runtime {version} has no kernel for an operator of {file}: {detail}",
        "Export the model with another data type or opset for that operator.",
    ),
    (
        r"is under development|Unsupported model IR version",
        "{file} has a newer ONNX version than ONNX Runtime {version} reads: {detail}",
        "Install a newer ONNX Runtime, or export with an older opset.",
    ),
    (
        r"INVALID_PROTOBUF|Protobuf parsing failed|No graph was found|does not have a graph",
        "{file} is not a complete ONNX file ({bytes} bytes): it is truncated, or another kind of file.",
        "Export or copy the model again.",
    ),
    (
        r"[Ee]xternal (?:data|initializer)|GetFileLength for .* failed|cannot get file size",
        "The external weights of {file} are missing or truncated: {detail}",
        "Copy that file into {folder} too.",
    ),
)
"""Patterns of the runtime's errors, their meaning, and the cure."""

_NOISE = (
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : ",
    r"^Load model from .* failed: ?",
    r"^/\S+:\d+ .*\) (?=ONNX)",
)


class OrtSession:
    """A model in ONNX Runtime; see `Session`."""

    def __init__(self, session: Any, *, path: Path, version: str) -> None:
        self._session: Any = session
        self._model = path.name
        self.runtime = f"onnxruntime {version}"
        self.evidence = evidence()
        self.inputs = tuple(_spec(node, path) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, path) for node in session.get_outputs())

    def run(self, inputs: Arrays) -> Dict[str, NDArray[Any]]:
        feeds = checked_inputs(self.inputs, inputs, model=self._model)
        names = [spec.name for spec in self.outputs]
        try:
            return dict(zip(names, self._open().run(names, feeds)))
        except Exception as error:
            raise self._failed(error) from error

    def prepare(self, inputs: Arrays) -> Callable[[], object]:
        session = self._open()
        binding = session.io_binding()
        for name, array in checked_inputs(self.inputs, inputs, model=self._model).items():
            binding.bind_cpu_input(name, array)
        run = session.run_with_iobinding

        def anew() -> None:
            for spec in self.outputs:
                binding.bind_output(spec.name)
            run(binding)

        def again() -> None:
            try:
                run(binding)
            except Exception:  # another size than before, as after a random draw
                anew()

        try:
            anew()
        except Exception as error:
            raise self._failed(error) from error
        # The runtime fills its own outputs again, but only where they have the size that the file declares.
        shapes = [value.shape() for value in binding.get_outputs()]
        return again if all(map(TensorSpec.fits, self.outputs, shapes)) else anew

    def end_profile(self) -> Path:
        """Writes the profile, if the session was opened with one, and returns its path."""
        return Path(self._open().end_profiling())

    def close(self) -> None:
        self._session = None

    def _open(self) -> Any:
        if self._session is None:
            raise ModelError(
                f"{self._model} was closed and cannot be run.", "Open it again with open_session."
            )
        return self._session

    def _failed(self, error: Exception) -> ModelError:
        if isinstance(error, ModelError):
            return error
        return ModelError(
            f"ONNX Runtime failed while running {self._model}: {_first_line(error)}",
            "Check the model on the machine that exported it, with inputs of the same sizes.",
        )


def open_ort(path: Path, *, threads: int, profile: Optional[Path] = None, exact: bool = False) -> OrtSession:
    """Opens an ONNX file on the CPU, all graph optimizations on; see `open_session` for the errors.

    Args:
        profile: the prefix of the profile's path: the profiler runs until `end_profile`.
        exact: whether Q/DQ pairs run in float, not in INT8 kernels, which saturate on some processors.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise TargetError(
            f"{path.name} needs ONNX Runtime to run, which is not installed here ({error}).",
            "Install it: pip install onnxruntime",
        ) from error
    except Exception as error:  # a library built for another numpy may raise anything
        raise TargetError(
            f"ONNX Runtime is installed here but does not import: {type(error).__name__}: {error}.",
            "Run deadweight doctor: it prints the command that fixes it.",
        ) from error
    if not path.is_file():
        raise ModelError(f"There is no model at {path}.", "Check the path.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if exact:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.log_severity_level = 4  # our own error reports a failure, once
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _unopened(path, error, onnxruntime.__version__) from error
    return OrtSession(session, path=path, version=onnxruntime.__version__)


def _unopened(path: Path, error: Exception, version: str) -> ModelError:
    """The error for the runtime's message, which says more than the type of its exception."""
    for words, what, cure in _REASONS:
        match = re.search(words, str(error))
        if match:
            detail = next((group for group in match.groups() if group), _first_line(error))
            message = what.format(file=path.name, version=version, detail=detail, bytes=path.stat().st_size)
            return ModelError(message, cure.format(folder=path.parent))
    return ModelError(
        f"ONNX Runtime {version} cannot open {path.name}: {_first_line(error)}", "Export the model again."
    )


def _first_line(error: Exception) -> str:
    """The runtime's message without its error code, the model's path, and positions in its source."""
    words = (str(error).strip() or type(error).__name__).splitlines()[0]
    for noise in _NOISE:
        words = re.sub(noise, "", words)
    return words[:300]


def _spec(node: Any, path: Path) -> TensorSpec:
    named = re.fullmatch(r"tensor\((\w+)\)", node.type)
    dtype = _DTYPES.get(named.group(1)) if named else None
    if dtype is None:
        raise ModelError(
            f"'{node.name}' of {path.name} is a {node.type}, which numpy does not support.",
            "Export the model with plain tensors as inputs and outputs.",
        )
    return TensorSpec(node.name, tuple(node.shape), dtype)
