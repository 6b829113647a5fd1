"""A TensorRT engine as a `Session`: addresses are set by name, and runs are enqueued on its own stream.

Inputs and outputs are in device memory, copied through page-locked host memory, or in mapped memory on
request. `prepare` places the inputs once, so that only the engine is timed, as a CUDA graph on request; `run`
copies in and out. An output whose size depends on the data gets its memory during the run. A profiler makes
TensorRT wait after every layer, so it has its own context, which is never timed. `open_trt` checks a plan's
record against this machine before it is opened, since TensorRT's errors do not name the difference.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

from ..engines.log import Line, cause, heard, import_tensorrt, is_simulated, reason
from ..engines.plugins import check_plugins, given_plugins, load_plugins
from ..engines.record import check_record, read_record, rebuild_command
from ..errors import ModelError, TargetError
from ..machine.cuda import Cuda, open_cuda
from ..machine.probe import evidence
from .session import TensorSpec, checked_inputs
from .trt_memory import Buffer, Growing, Part, Watch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .session import Arrays

_DTYPES = {
    "float": "float32",
    "half": "float16",
    **{name: name for name in ("int8", "int32", "int64", "uint8", "bool")},
}


class TrtSession:
    """An open engine; see `Session`. Dynamic dimensions are those of its profiles."""

    def __init__(
        self,
        engine: Any,
        *,
        trt: Any,
        cuda: Cuda,
        plan: Path,
        runtime: str,
        evidence: str,
        graph: bool,
        mapped: bool,
        rebuild: str,
        watch: Watch,
    ) -> None:
        self.runtime = runtime
        self.evidence = evidence
        self._trt, self._cuda, self._plan, self._rebuild = trt, cuda, plan, rebuild
        self._engine: Any = engine
        self._graph_wanted, self._graph = graph, 0
        self._watch = watch
        self._growing: Dict[str, Growing] = {}
        self._placed: Tuple[Tuple[str, Tuple[int, ...]], ...] = ()
        self._profile = 0
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._buffers = {name: Buffer(cuda, mapped=mapped) for name in names}
        of_mode = {name: engine.get_tensor_mode(name) for name in names}
        self.inputs = tuple(self._spec(name) for name in names if of_mode[name] == trt.TensorIOMode.INPUT)
        self.outputs = tuple(self._spec(name) for name in names if of_mode[name] == trt.TensorIOMode.OUTPUT)
        with heard(trt) as (_, lines):
            self._context: Any = engine.create_execution_context()
            if self._context is None:
                raise self._refused("has no room to run", lines)
        watch.mark()
        self._stream = cuda.stream()

    def run(self, inputs: Arrays) -> Dict[str, NDArray[Any]]:
        self._fill(inputs)
        self._enqueue(self._context)
        shapes = {**dict(self._placed), **{name: growing.shape for name, growing in self._growing.items()}}
        outputs = {
            spec.name: self._buffers[spec.name].fetch(shapes[spec.name], spec.dtype, self._stream)
            for spec in self.outputs
        }
        self._wait()
        return {name: np.array(array) for name, array in outputs.items()}

    def prepare(self, inputs: Arrays) -> Callable[[], object]:
        self._fill(inputs)
        if self._graph_wanted and self._growing:
            raise ModelError(
                f"The size of the output '{next(iter(self._growing))}' of {self._plan.name} depends on the "
                "data: it cannot be captured as a CUDA graph.",
                "Run it without a graph: omit --cuda-graph.",
            )
        # The first enqueue after a change of shapes initializes the context, outside any timing or graph.
        self._enqueue(self._context)
        self._wait()
        if self._graph_wanted:
            self._drop_graph()
            self._graph = self._cuda.graph(self._stream, lambda: self._enqueue(self._context))
        return self._launching() if self._graph_wanted else self._running()

    def layer_times(self, inputs: Arrays, *, runs: int = 50, warmup: int = 5) -> Dict[str, List[float]]:
        """Seconds of each layer in each run, by TensorRT's names, in execution order.

        TensorRT waits after every layer here: the sum exceeds the latency of a run.
        """
        feeds = self._fill(inputs)
        times: Dict[str, List[float]] = {}
        profiler = _profiler(self._trt, times)
        with heard(self._trt) as (_, lines):
            context = self._engine.create_execution_context()
            if context is None:
                raise self._refused("has no room for a second context, which its profile needs", lines)
            context.profiler = profiler
            self._set_up(context, {name: array.shape for name, array in feeds.items()})
            for index in range(warmup + runs):
                if index == warmup:
                    times.clear()
                self._enqueue(context)
                self._wait()
        return times

    def inspect(self) -> str:
        """TensorRT's JSON about the engine's layers; detailed if the engine was built so."""
        inspector = self._open().create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def memory(self) -> Tuple[Part, ...]:
        """The engine's memory, in parts, each with its source."""
        io_bytes = sum(buffer.size for buffer in self._buffers.values())
        return self._watch.memory(self._open(), self._trt, plan=self._plan, io_bytes=io_bytes)

    def close(self) -> None:
        if self._engine is None:
            return
        # After a failure on the GPU nothing can be freed; the run has reported why.
        with contextlib.suppress(TargetError):
            self._drop_graph()
            for buffer in self._buffers.values():
                buffer.free()
            self._cuda.stream_free(self._stream)
        self._context = self._engine = None  # the context first, since it needs its engine

    def _running(self) -> Callable[[], object]:
        """A function for one run with minimal overhead: lookups are done here."""
        enqueue, stream = self._context.execute_async_v3, self._stream
        wait = self._cuda.bound("cudaStreamSynchronize", stream)

        def run() -> None:
            if not enqueue(stream):
                self._enqueue(self._context)
            try:
                wait()
            except TargetError as error:
                raise self._failed_late(error) from error

        return run

    def _launching(self) -> Callable[[], object]:
        graph = self._graph
        launch = self._cuda.bound("cudaGraphLaunch", graph, self._stream)
        wait = self._cuda.bound("cudaStreamSynchronize", self._stream)

        def run() -> None:
            if self._graph != graph:
                raise ModelError(
                    f"The graph of {self._plan.name} no longer exists: other inputs were placed since.",
                    "Call prepare again for these inputs.",
                )
            launch()
            try:
                wait()
            except TargetError as error:
                raise self._failed_late(error) from error

        return run

    def _wait(self) -> None:
        try:
            self._cuda.synchronize(self._stream)
        except TargetError as error:
            raise self._failed_late(error) from error

    def _failed_late(self, error: TargetError) -> ModelError:
        """The error of a kernel, which CUDA reports only when the host waits for the stream."""
        return ModelError(
            f"{self._plan.name} failed on the GPU after it was enqueued: {error.what}",
            "Run it in a new process: this one cannot use CUDA any more. If it fails again, check the plugin "
            f"libraries and the board's memory, or build it again: {self._rebuild}",
        )

    def _open(self) -> Any:
        if self._engine is None:
            raise ModelError(
                f"{self._plan.name} was closed and cannot be run.", "Open it again with open_session."
            )
        return self._engine

    def _enqueue(self, context: Any) -> None:
        self._open()
        if context.execute_async_v3(self._stream):
            return
        with heard(self._trt) as (_, lines):
            # Repeated for TensorRT's message: the log is recorded only here.
            if context.execute_async_v3(self._stream):
                return
        for growing in self._growing.values():
            if growing.error is not None:
                raise growing.error
        raise self._refused("failed while running", lines)

    def _fill(self, inputs: Arrays) -> Dict[str, NDArray[Any]]:
        feeds = checked_inputs(self.inputs, inputs, model=self._plan.name)
        self._place(feeds)
        self._wait()  # a previous copy may still read the host memory
        for name, array in feeds.items():
            self._buffers[name].fill(array, self._stream)
        return feeds

    def _place(self, feeds: Dict[str, NDArray[Any]]) -> None:
        """Sets shapes, buffers and addresses for these inputs, if their shapes changed."""
        self._open()
        shapes = {name: tuple(array.shape) for name, array in feeds.items()}
        placed = tuple(shapes.items())
        if self._placed[: len(placed)] == placed:
            return
        self._drop_graph()
        self._placed = ()
        self._choose_profile(shapes)
        with heard(self._trt) as (_, lines):
            outputs = self._set_up(self._context, shapes, lines=lines)
        self._placed = (*placed, *outputs.items())

    def _set_up(
        self, context: Any, shapes: Dict[str, Tuple[int, ...]], *, lines: Sequence[Line] = ()
    ) -> Dict[str, Tuple[int, ...]]:
        """Sets a context's input shapes and all addresses; returns the shapes of the outputs with one."""
        if self._engine.num_optimization_profiles > 1:
            context.set_optimization_profile_async(self._profile, self._stream)
            self._wait()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._refused(f"does not take the shape {list(shape)} for '{name}'", lines)
        missing = context.infer_shapes()
        if missing:
            raise self._refused(f"lacks sizes of {', '.join(missing)}", lines)
        outputs: Dict[str, Tuple[int, ...]] = {}
        for spec in self.outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            if all(size >= 0 for size in shape):
                outputs[spec.name] = shape
                continue
            if spec.name not in self._growing:
                self._growing[spec.name] = Growing(self._trt, self._buffers[spec.name])
            context.set_output_allocator(spec.name, self._growing[spec.name].allocator)
        for spec in (*self.inputs, *self.outputs):
            if spec.name in self._growing:
                continue
            shape = shapes[spec.name] if spec.name in shapes else outputs[spec.name]
            address = self._buffers[spec.name].reserve(math.prod(shape) * np.dtype(spec.dtype).itemsize)
            if not context.set_tensor_address(spec.name, address):
                raise self._refused(f"does not take an address for '{spec.name}'", lines)
        return outputs

    def _choose_profile(self, shapes: Dict[str, Tuple[int, ...]]) -> None:
        """Selects the first profile that allows these shapes."""
        ranges: List[str] = []
        for index in range(max(1, self._engine.num_optimization_profiles)):
            outside = []
            for spec in self.inputs:
                if all(isinstance(size, int) for size in spec.shape):
                    continue
                known = self._engine.get_tensor_profile_shape(spec.name, index)
                low, _, high = (tuple(shape) for shape in known)
                if not all(a <= got <= b for a, got, b in zip(low, shapes[spec.name], high)):
                    outside.append(f"'{spec.name}' from {list(low)} to {list(high)}")
            if not outside:
                self._profile = index
                return
            ranges += outside
        given = ", ".join(f"'{name}' {list(shape)}" for name, shape in shapes.items())
        raise ModelError(
            f"{self._plan.name} accepts {' or '.join(ranges)}, but got {given}.",
            f"Split the batch, or build for larger sizes (--batch or --shapes): {self._rebuild}",
        )

    def _drop_graph(self) -> None:
        if self._graph:
            self._cuda.graph_free(self._graph)
            self._graph = 0

    def _spec(self, name: str) -> TensorSpec:
        kind = str(self._engine.get_tensor_dtype(name)).rsplit(".", 1)[-1].lower()
        if kind not in _DTYPES or self._engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise ModelError(
                f"'{name}' of {self._plan.name} is {kind}, which cannot be a plain array.",
                "Export the model with plain tensors as inputs and outputs; no input may determine a shape.",
            )
        shape = tuple(None if size < 0 else int(size) for size in self._engine.get_tensor_shape(name))
        return TensorSpec(name, shape, _DTYPES[kind])

    def _refused(self, what: str, lines: Sequence[Line]) -> ModelError:
        free, total = self._cuda.memory_bytes()
        return ModelError(
            f"{self._plan.name} {what}: {reason(lines)}. {free / 1e6:.0f} of {total / 1e6:.0f} MB are free.",
            f"Free some memory, use a smaller batch, or build it again: {self._rebuild}",
        )


def open_trt(
    path: Path, *, flavour: str = "tensorrt", graph: bool = False, mapped: bool = False, block: bool = False
) -> TrtSession:
    """Opens a plan on this machine's GPU.

    Args:
        graph: timed runs launch a captured CUDA graph.
        mapped: inputs and outputs are in mapped host memory, not in device memory.
        block: the host sleeps until the GPU is done, in place of spinning.

    Raises:
        ModelError: the plan is missing, truncated, or was built for another machine or TensorRT, or with a
            plugin library that was not given.
        TargetError: no TensorRT, no CUDA binding, or no memory.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"There is no engine at {path}.", "Check the path, or build it: deadweight build.")
    record = read_record(path)
    trt = import_tensorrt(flavour)
    opened = open_cuda()
    capability = opened.compute_capability()
    if record is not None:
        check_record(record, path, flavour=flavour, version=trt.__version__, compute_capability=capability)
    rebuild = rebuild_command(path, record)
    waits = ", blocking" if block else ""
    if not opened.wait_by("block" if block else "spin"):
        waits = ", waiting as CUDA chooses"
    if mapped and not opened.attribute("can_map_host_memory"):
        raise TargetError("This GPU cannot map host memory.", "Omit --buffers mapped.")
    watch = Watch(opened)
    with heard(trt) as (logger, lines):
        check_plugins(record or {}, path, load_plugins(given_plugins()))
        runtime = trt.Runtime(logger)
        if record is not None and record["settings"]["dla_core"] is not None:
            runtime.DLA_core = record["settings"]["dla_core"]
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ModelError(
                f"{flavour} {trt.__version__} cannot open {path.name} ({path.stat().st_size} bytes) on this "
                f"GPU of compute capability {capability}: {reason(lines)}.",
                f"Give the library of its plugins: --plugin LIB.so. Or build it here: {rebuild}"
                if cause(lines) == "plugin"
                else "A plan runs only on the TensorRT and the GPU it was built with. Build it here: "
                f"{rebuild}",
            )
    watch.mark()
    simulated = is_simulated(lines) or (record is not None and record["evidence"] == "simulated")
    try:
        return TrtSession(
            engine,
            trt=trt,
            cuda=opened,
            plan=path,
            runtime=f"{flavour} {trt.__version__}"
            + (" with a CUDA graph" if graph else "")
            + (", mapped buffers" if mapped else "")
            + waits,
            evidence="simulated" if simulated else evidence(),
            graph=graph,
            mapped=mapped,
            rebuild=rebuild,
            watch=watch,
        )
    finally:
        del engine, runtime


def _profiler(trt: Any, times: Dict[str, List[float]]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined, unused-ignore]
        """Records each layer's time; TensorRT calls it once per layer and run."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms / 1e3)

    return Profiler()
