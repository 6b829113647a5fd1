"""What the fake TensorRT does, once its C side asked: parse with onnx, "build" a plan, run ONNX Runtime.

It says `[simulated]` in its log when it is first used, which is how the product knows it. Device addresses
are the host's (see cudart.c). Faults are put into `faults`, in words that real TensorRT was seen to write.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx_side import OURS, STANDARD, inputs_of, objections, outputs_of, runnable

OLD = os.environ["FAKE_MAJOR"] == "8"
SIZE = ctypes.c_int32 if OLD else ctypes.c_int64
MAGIC = b"a plan of the fake TensorRT\n"
ERROR, WARNING, INFO, VERBOSE = 1, 2, 3, 4
DTYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bool": 4, "uint8": 5, "int64": 3 if OLD else 8}
"""TensorRT 8 has no INT64: such a tensor of a file is INT32 to it."""
NOT_ON_DLA = ("Gather", "LayerNormalization", "Softmax", "QuantizeLinear", "DequantizeLinear")

faults: dict[str, str] = {}
"""What shall fail next, and the words for it: build, context, execute, cache, start."""


class Dims(ctypes.Structure):
    """nvinfer1::Dims, whose sizes have 64 bits since TensorRT 10."""

    _fields_ = [("n", ctypes.c_int32), ("d", SIZE * 8)]

    def take(self, shape: tuple[int, ...]) -> None:
        self.n = len(shape)
        for axis, size in enumerate(shape):
            self.d[axis] = size

    def tuple(self) -> tuple[int, ...]:
        return tuple(self.d[: self.n])


class Question(ctypes.Structure):
    """As in engine.c."""

    _fields_ = [
        ("what", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("text", ctypes.c_char_p),
        ("id", ctypes.c_int64),
        ("number", ctypes.c_int64),
        ("other", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("dims", Dims),
    ]


ANSWERER = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(Question))


class Fake:
    """All state behind the fake's objects: each is an entry of `things`, known by its index."""

    def __init__(self, folder: Path, *, major: str) -> None:
        self.engine = ctypes.CDLL(str(folder / f"libnvinfer.so.{major}"))
        for name in ("libnvonnxparser", "libnvinfer_plugin", "libnvparsers"):
            ctypes.CDLL(str(folder / f"{name}.so.{major}"))
        self.cudart = ctypes.CDLL(str(folder / "libcudart.so"))
        self.things: list[dict[str, Any]] = [{}]
        self.kept: list[Any] = []
        self.said = False
        self.version = 0
        self.executions = 0
        self.allowed = False
        self.registered: set[str] = set()
        self.parser_flags: set[str] = set()
        self._answerer = ANSWERER(self._answer)
        self.engine.fake_connect(self._answerer, ctypes.cast(self.cudart.fake_capture, ctypes.c_void_p))
        self.engine.fake_report.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
        self.engine.fake_reallocate.restype = self.engine.fake_calibration.restype = ctypes.c_void_p

    def log(self, severity: int, text: str) -> None:
        self.engine.fake_log(severity, text.encode())

    def new(self, **state: Any) -> int:
        self.things.append(state)
        return len(self.things) - 1

    def _answer(self, pointer: Any) -> int:
        question = pointer.contents
        what = question.what.decode()
        try:
            handler: Callable[[Any, dict[str, Any]], Any] = getattr(self, f"do_{what}")
            given = handler(question, self.things[question.id])
        except Exception as error:
            print(f"the fake stumbled over {what}: {error!r}", flush=True)
            raise
        if isinstance(given, str):
            self.kept.append(given.encode())
            question.text = self.kept[-1]
            return 0
        if isinstance(given, tuple):
            question.dims.take(given)
            return 0
        return 0 if given is None else int(given)

    # builder and network

    def do_create_builder(self, q: Any, thing: Any) -> int:
        return self._started(q)

    def do_create_runtime(self, q: Any, thing: Any) -> int:
        return self._started(q)

    def _started(self, q: Any) -> int:
        self.version = int(os.environ.get("FAKE_VERSION") or q.number)
        self.log(WARNING, "[simulated] This is no TensorRT: ONNX Runtime does the arithmetic.")
        if "start" in faults:
            self.log(ERROR, faults.pop("start"))
            return -1
        return self.new(core=-1)

    def do_init_plugins(self, q: Any, thing: Any) -> bool:
        self.registered |= set(STANDARD)
        return True

    def do_register(self, q: Any, thing: Any) -> None:
        self.registered.add(q.name.decode())

    def do_dla_cores(self, q: Any, thing: Any) -> int:
        # 10.7 is the last version before 11.4.1 that can use Orin's.
        return 0 if 100800 <= self.version < 110401 else int(os.environ.get("FAKE_DLA_CORES", "2"))

    def do_create_network(self, q: Any, thing: Any) -> int:
        return self.new(flags=q.number, inputs=[], outputs=[], layers=[], model=b"")

    def do_create_parser(self, q: Any, network: Any) -> int:
        return self.new(network=network, errors=[])

    def do_parse(self, q: Any, parser: Any) -> bool:
        path = Path(q.name.decode())
        network = parser["network"]
        try:
            model = onnx.load(str(path))
        except Exception:
            parser["errors"].append((3, -1, "Failed to parse the ONNX model.", "", ""))
            return False
        if OLD:  # its parser registers the standard plugins itself
            self.registered |= set(STANDARD)
        for objection in objections(model, registered=self.registered, strong=self._strong(network)):
            parser["errors"].append(objection)
            node = model.graph.node[objection[1]]
            answer = f'While parsing node number {objection[1]} [{node.op_type} -> "{node.output[0]}"]:'
            self.log(ERROR, f"ModelImporter.cpp:140: {answer}")
        if parser["errors"]:
            return False
        network["inputs"], network["outputs"] = inputs_of(model), outputs_of(model)
        network["layers"] = [
            {"name": node.name or node.output[0], "type": node.op_type} for node in model.graph.node
        ]
        network["model"] = runnable(model).SerializeToString()
        return True

    def _strong(self, network: Any) -> bool:
        import tensorrt_bindings  # pyright: ignore[reportMissingImports]

        kind = getattr(tensorrt_bindings.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return self.version >= 110000 or (kind is not None and bool(network["flags"] >> int(kind) & 1))

    def do_parser_flag(self, q: Any, parser: Any) -> None:
        import tensorrt_bindings  # pyright: ignore[reportMissingImports]

        flags = tensorrt_bindings.OnnxParserFlag
        self.parser_flags.add(next(name for name, flag in flags.__members__.items() if int(flag) == q.number))

    def do_num_errors(self, q: Any, parser: Any) -> int:
        return len(parser["errors"])

    def do_error(self, q: Any, parser: Any) -> int:
        code, q.other, *answer = parser["errors"][q.number]
        self.kept.append("\t".join(answer).encode())
        q.text = self.kept[-1]
        return int(code)

    def do_num_inputs(self, q: Any, network: Any) -> int:
        return len(network["inputs"])

    def do_num_outputs(self, q: Any, network: Any) -> int:
        return len(network["outputs"])

    def do_num_layers(self, q: Any, network: Any) -> int:
        return len(network["layers"])

    def do_input(self, q: Any, network: Any) -> int:
        return self.new(**network["inputs"][q.number])

    def do_output(self, q: Any, network: Any) -> int:
        return self.new(**network["outputs"][q.number])

    def do_layer(self, q: Any, network: Any) -> int:
        return self.new(**network["layers"][q.number])

    def do_name(self, q: Any, thing: Any) -> str:
        return str(thing["name"])

    def do_dims(self, q: Any, tensor: Any) -> tuple[int, ...]:
        return tuple(tensor["shape"])

    def do_type(self, q: Any, thing: Any) -> int:
        if "dtype" in thing:
            return DTYPES[thing["dtype"]]
        # The numbers behind its enums differ between versions.
        import tensorrt_bindings  # pyright: ignore[reportMissingImports]

        kinds = tensorrt_bindings.LayerType
        return int(kinds.QUANTIZE if thing["type"] == "QuantizeLinear" else kinds.IDENTITY)

    def do_set_type(self, q: Any, tensor: Any) -> None:
        tensor["dtype"] = next(name for name, number in DTYPES.items() if number == q.number)

    def do_set_formats(self, q: Any, tensor: Any) -> None:
        tensor["formats"] = q.number

    # profile and config

    def do_create_profile(self, q: Any, thing: Any) -> int:
        return self.new(shapes={})

    def do_profile_set(self, q: Any, profile: Any) -> bool:
        profile["shapes"].setdefault(q.name.decode(), [(), (), ()])[q.number] = q.dims.tuple()
        return True

    def do_profile_get(self, q: Any, profile: Any) -> tuple[int, ...]:
        return tuple(profile["shapes"][q.name.decode()][q.number])

    def do_create_config(self, q: Any, thing: Any) -> int:
        return self.new(
            flags=set(),
            pools={},
            profiles=[],
            verbosity=0,
            device=0,
            core=-1,
            cache=None,
            capability=0,
            calibrator=0,
        )

    def do_set_flag(self, q: Any, config: Any) -> None:
        config["flags"].add(q.number)

    def do_clear_flag(self, q: Any, config: Any) -> None:
        config["flags"].discard(q.number)

    def do_get_flag(self, q: Any, config: Any) -> bool:
        return q.number in config["flags"]

    def do_flags(self, q: Any, config: Any) -> int:
        return sum(1 << flag for flag in config["flags"])

    def do_set_pool(self, q: Any, config: Any) -> None:
        if q.number != 0 and q.other.bit_count() != 1:
            self.log(
                ERROR,
                "IBuilderConfig::setMemoryPoolLimit: Error Code 3: API Usage Error (Parameter check failed)",
            )
            return
        config["pools"][q.number] = q.other

    def do_get_pool(self, q: Any, config: Any) -> int:
        return int(config["pools"].get(q.number, 0))

    def do_add_profile(self, q: Any, config: Any) -> int:
        config["profiles"].append(self.things[q.number]["shapes"])
        return len(config["profiles"]) - 1

    def do_set_verbosity(self, q: Any, config: Any) -> None:
        config["verbosity"] = q.number

    def do_get_verbosity(self, q: Any, config: Any) -> int:
        return int(config["verbosity"])

    def do_set_device(self, q: Any, config: Any) -> None:
        config["device"] = q.number

    def do_get_device(self, q: Any, config: Any) -> int:
        return int(config["device"])

    def do_set_core(self, q: Any, config: Any) -> None:
        config["core"] = q.number

    def do_get_core(self, q: Any, config: Any) -> int:
        return int(config["core"])

    def do_set_capability(self, q: Any, config: Any) -> None:
        config["capability"] = q.number

    def do_set_calibrator(self, q: Any, config: Any) -> None:
        config["calibrator"] = q.number

    def do_set_level(self, q: Any, config: Any) -> None:
        config["level"] = q.number

    def do_set_compatibility(self, q: Any, config: Any) -> None:
        config["compatibility"] = q.number

    def do_on_dla(self, q: Any, config: Any) -> bool:
        return self.things[q.number]["type"] not in NOT_ON_DLA

    def do_make_cache(self, q: Any, config: Any) -> int:
        data = ctypes.string_at(q.data, q.number) if q.number else b""
        if data and not data.startswith(b"timings"):
            self.log(ERROR, "Failed to load the timing cache: the magic tag does not match.")
            return -1
        return self.new(data=data)

    def do_set_cache(self, q: Any, config: Any) -> bool:
        data = self.things[q.number]["data"]
        if data and data != self._timings() and not q.other:
            self.log(ERROR, "The timing cache is of a device with other CUDA device properties.")
            return False
        config["cache"] = q.number
        return True

    def _timings(self) -> bytes:
        return f"timings of {os.environ.get('FAKE_DEVICE', 'the fake')}".encode()

    def do_get_cache(self, q: Any, config: Any) -> int:
        return -1 if config["cache"] is None else int(config["cache"])

    def do_serialize_cache(self, q: Any, cache: Any) -> int:
        return self._memory(cache["data"] or self._timings())

    # plans

    def do_build(self, q: Any, builder: Any) -> int:
        network, config = self.things[q.number], self.things[q.other]
        if "build" in faults:
            self.log(ERROR, faults.pop("build"))
            return -1
        free = [tensor["name"] for tensor in network["inputs"] if -1 in tensor["shape"]]
        if free and not config["profiles"]:
            self.log(
                ERROR,
                "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic or "
                "shape inputs, but no optimization profile has been defined.)",
            )
            return -1
        if config["device"] == 1:
            import tensorrt_bindings  # pyright: ignore[reportMissingImports]

            if self._refused_by_dla(network, config):
                return -1
            allowed = int(tensorrt_bindings.BuilderFlag.GPU_FALLBACK) in config["flags"]
            if not allowed and any(layer["type"] in NOT_ON_DLA for layer in network["layers"]):
                self.log(ERROR, "A layer is not supported on DLA and GPU_FALLBACK is not enabled.")
                return -1
            if "moved" in faults:
                self.log(INFO, f"[GpuLayer] {faults.pop('moved')}")
            for layer in network["layers"]:
                if layer["type"] in NOT_ON_DLA:
                    self.log(
                        WARNING,
                        f"Layer '{layer['name']}' ({layer['type'].upper()}): Unsupported on DLA. Switching "
                        "this layer's device type to GPU.",
                    )
                side = "Gpu" if layer["type"] in NOT_ON_DLA else "Dla"
                self.log(INFO, f"[{side}Layer] {layer['name']}")
        calibration = self._calibration(config)
        self.log(VERBOSE, "Adding reformat layer: Reformatted Input Tensor 0 to the first layer")
        self.log(INFO, "Total Weights Memory: 1024 bytes")
        head = {
            "version": self.version,
            "sm": os.environ.get("FAKE_SM", "8.7"),
            "inputs": network["inputs"],
            "outputs": network["outputs"],
            "layers": network["layers"],
            "profiles": config["profiles"],
            "flags": sorted(config["flags"]),
            "strong": network["flags"],
            "verbosity": config["verbosity"],
            "capability": config["capability"],
            "calibration": calibration,
            "bytes": len(network["model"]),
        }
        return self._memory(MAGIC + json.dumps(head).encode() + b"\n" + network["model"])

    def _refused_by_dla(self, network: Any, config: Any) -> bool:
        import tensorrt_bindings  # pyright: ignore[reportMissingImports]

        flags = tensorrt_bindings.BuilderFlag
        quantized = any(layer["type"] == "QuantizeLinear" for layer in network["layers"])
        if quantized and self.version < 110401:
            self.log(ERROR, "DLA does not support explicit quantization: the Q/DQ layers cannot run there.")
            return True
        if any(low != high for profile in config["profiles"] for low, _, high in profile.values()):
            self.log(ERROR, "DLA Layer 0 does not support dynamic shapes in any dimension.")
            return True
        weak = hasattr(flags, "INT8") and int(flags.INT8) in config["flags"]
        if weak and not quantized and not config["calibrator"]:
            self.log(ERROR, "Calibration failure occurred with no scaling factors detected.")
            return True
        if config["capability"] == 2 and int(flags.GPU_FALLBACK) in config["flags"]:
            self.log(ERROR, "GPU_FALLBACK cannot be set for an engine capability of DLA_STANDALONE.")
            return True
        return False

    def _calibration(self, config: Any) -> str:
        """What the calibrator's cache says; TensorRT asks it during the build."""
        if not config["calibrator"]:
            return ""
        size = ctypes.c_size_t()
        data = self.engine.fake_calibration(ctypes.c_void_p(config["calibrator"]), ctypes.byref(size))
        return ctypes.string_at(data, size.value).decode() if data else ""

    def _memory(self, data: bytes) -> int:
        return self.new(data=ctypes.create_string_buffer(data, len(data)), size=len(data))

    def do_memory_data(self, q: Any, memory: Any) -> int:
        return ctypes.addressof(memory["data"])

    def do_memory_size(self, q: Any, memory: Any) -> int:
        return int(memory["size"])

    def do_deserialize(self, q: Any, runtime: Any) -> int:
        data = ctypes.string_at(q.data, q.number)
        failed = "IRuntime::deserializeCudaEngine: Error Code"
        if not data.startswith(MAGIC):
            self.log(
                ERROR,
                f"{failed} 1: Serialization (Serialization assertion magicTagRead == kMAGIC_TAG failed."
                "Magic tag does not match)",
            )
            return -1
        self.allowed = runtime.get("allowed", False)
        head, _, model = data[len(MAGIC) :].partition(b"\n")
        try:
            answer = json.loads(head)
        except ValueError:
            answer = {"bytes": -1, "version": self.version, "sm": ""}
        if answer["bytes"] != len(model):
            self.log(
                ERROR,
                f"{failed} 1: Serialization (Serialization assertion sizeRead == mEnd - mCurrent failed."
                "Size specified in header does not match archive size)",
            )
            return -1
        if answer["version"] != self.version:
            self.log(
                ERROR,
                f"{failed} 1: Serialization (Serialization assertion stdVersionRead == "
                "kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: "
                f"{self.version}, Serialized Engine Version: {answer['version']})",
            )
            return -1
        here = os.environ.get("FAKE_SM", "8.7")
        if answer["sm"] != here:
            self.log(
                ERROR,
                f"{failed} 6: API Usage Error (The engine plan file is generated on an incompatible "
                f"device, expecting compute {here} got compute {answer['sm']}, please rebuild.)",
            )
            return -1
        for layer in answer["layers"]:
            if layer["type"] in (*STANDARD, *OURS) and layer["type"] not in self.registered:
                plugin = STANDARD.get(layer["type"], layer["type"])
                self.log(ERROR, f"{failed} 4: API Usage Error (Cannot find plugin: {plugin}, version: 1)")
                return -1
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return self.new(**answer, session=session, plan=data)

    def do_runtime_set_core(self, q: Any, runtime: Any) -> None:
        runtime["core"] = q.number

    def do_runtime_get_core(self, q: Any, runtime: Any) -> int:
        return int(runtime["core"])

    def do_runtime_allow(self, q: Any, runtime: Any) -> None:
        runtime["allowed"] = bool(q.number)

    def do_num_tensors(self, q: Any, engine: Any) -> int:
        return len(engine["inputs"]) + len(engine["outputs"])

    def do_engine_layers(self, q: Any, engine: Any) -> int:
        return len(engine["layers"])

    def do_num_profiles(self, q: Any, engine: Any) -> int:
        return max(1, len(engine["profiles"]))

    def do_tensor_name(self, q: Any, engine: Any) -> str:
        return str((engine["inputs"] + engine["outputs"])[q.number]["name"])

    def do_tensor_shape(self, q: Any, engine: Any) -> tuple[int, ...]:
        return tuple(_named(engine, q.name)["shape"])

    def do_tensor_dtype(self, q: Any, engine: Any) -> int:
        return DTYPES[_named(engine, q.name)["dtype"]]

    def do_tensor_mode(self, q: Any, engine: Any) -> int:
        return 1 if _named(engine, q.name) in engine["inputs"] else 2

    def do_engine_profile(self, q: Any, engine: Any) -> tuple[int, ...]:
        name = q.name.decode()
        if engine["profiles"] and name in engine["profiles"][q.number]:
            return tuple(engine["profiles"][q.number][name][q.other])
        return tuple(_named(engine, q.name)["shape"])

    def do_activations(self, q: Any, engine: Any) -> int:
        return 4096

    def do_stat(self, q: Any, engine: Any) -> int:
        return 1024

    def do_create_inspector(self, q: Any, engine: Any) -> int:
        return self.new(engine=engine)

    def do_inspect(self, q: Any, inspector: Any) -> str:
        engine = inspector["engine"]
        shown = engine["layers"] if engine["verbosity"] != 1 else []
        layers = [{"Name": layer["name"], "LayerType": layer["type"]} for layer in shown]
        names = [tensor["name"] for tensor in engine["inputs"] + engine["outputs"]]
        if self.version >= 110000:
            return json.dumps({"Layers": layers, "I/O Tensors": [{"Name": name} for name in names]})
        return json.dumps({"Layers": layers, "Bindings": names})

    # context

    def do_create_context(self, q: Any, engine: Any) -> int:
        if "context" in faults:
            self.log(ERROR, faults.pop("context"))
            return -1
        fixed = {t["name"]: tuple(t["shape"]) for t in engine["inputs"] if -1 not in t["shape"]}
        return self.new(
            engine=engine,
            of=q.id,
            shapes=fixed,
            addresses={},
            allocators={},
            profile=0,
            profiler=0,
            outputs={},
        )

    def do_engine_of(self, q: Any, context: Any) -> int:
        return int(context["of"])

    def do_set_shape(self, q: Any, context: Any) -> bool:
        engine, name, shape = context["engine"], q.name.decode(), q.dims.tuple()
        want = _named(engine, q.name)["shape"]
        profiles = engine["profiles"]
        low, high = want, want
        if profiles and name in profiles[context["profile"]]:
            low, _, high = profiles[context["profile"]][name]
        if len(shape) != len(want) or any(
            not a <= got <= b for a, got, b in zip(low, shape, high, strict=True)
        ):
            self.log(
                ERROR,
                "IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check failed, "
                "condition: engineDims.d[i] == dims.d[i]. Static dimension mismatch.)",
            )
            return False
        context["shapes"][name], context["outputs"] = shape, {}
        return True

    def do_infer(self, q: Any, context: Any) -> int:
        missing = [t["name"] for t in context["engine"]["inputs"] if t["name"] not in context["shapes"]]
        if missing:
            self.kept.append(missing[0].encode())
            q.text = self.kept[-1]
        return len(missing)

    def do_context_shape(self, q: Any, context: Any) -> tuple[int, ...]:
        name = q.name.decode()
        if name in context["shapes"]:
            return tuple(context["shapes"][name])
        tensor = _named(context["engine"], q.name)
        if tensor["dependent"]:
            return tuple(tensor["shape"])
        if not context["outputs"]:
            feeds = {
                t["name"]: np.zeros(context["shapes"][t["name"]], t["dtype"])
                for t in context["engine"]["inputs"]
            }
            names = [t["name"] for t in context["engine"]["outputs"]]
            ran = context["engine"]["session"].run(names, feeds)
            context["outputs"] = {each: array.shape for each, array in zip(names, ran, strict=True)}
        return tuple(context["outputs"][name])

    def do_set_address(self, q: Any, context: Any) -> bool:
        if q.number % 256:
            self.log(
                ERROR,
                "IExecutionContext::setTensorAddress: Error Code 3: API Usage Error (Parameter check "
                "failed, condition: is aligned)",
            )
            return False
        context["addresses"][q.name.decode()] = q.number
        return True

    def do_set_allocator(self, q: Any, context: Any) -> bool:
        context["allocators"][q.name.decode()] = q.number
        return True

    def do_set_profile(self, q: Any, context: Any) -> bool:
        context["profile"] = q.number
        return bool(0 <= q.number < max(1, len(context["engine"]["profiles"])))

    def do_get_profile(self, q: Any, context: Any) -> int:
        return int(context["profile"])

    def do_set_profiler(self, q: Any, context: Any) -> None:
        context["profiler"] = q.number

    def do_get_profiler(self, q: Any, context: Any) -> int:
        return int(context["profiler"])

    def do_ready(self, q: Any, context: Any) -> bool:
        if not q.number:
            self.log(WARNING, "Using default stream in enqueueV3() may lead to performance issues")
        if "execute" in faults:
            self.log(ERROR, faults["execute"])
            return False
        tensors = context["engine"]["inputs"] + context["engine"]["outputs"]
        missing = [
            t["name"] for t in tensors if t["name"] not in (*context["addresses"], *context["allocators"])
        ]
        if missing:
            self.log(
                ERROR,
                "IExecutionContext::enqueueV3: Error Code 3: API Usage Error (Parameter check failed, "
                f"condition: allInputTensorsSet. Address is not set for {missing[0]})",
            )
        return not missing

    def do_execute(self, q: Any, context: Any) -> bool:
        engine = context["engine"]
        feeds = {
            t["name"]: _at(
                context["addresses"][t["name"]], context["shapes"][t["name"]], _held(t["dtype"])
            ).astype(t["dtype"])
            for t in engine["inputs"]
        }
        names = [t["name"] for t in engine["outputs"]]
        for name, array in zip(names, engine["session"].run(names, feeds), strict=True):
            if name in context["allocators"] and not self._allocate(context, name, array):
                return False
            _at(context["addresses"][name], array.shape, _held(str(array.dtype)))[...] = array
        self.executions += 1
        if context["profiler"]:
            for index, layer in enumerate(engine["layers"]):
                self.engine.fake_report(context["profiler"], layer["name"].encode(), 0.5 + index)
        return True

    def _allocate(self, context: Any, name: str, array: Any) -> bool:
        """Asks an output's allocator for memory, and reports the shape to it; whether there was any."""
        allocator, dims = ctypes.c_void_p(context["allocators"][name]), Dims()
        size = array.size * np.dtype(_held(str(array.dtype))).itemsize
        before = ctypes.c_void_p(context["addresses"].get(name, 0))
        address = self.engine.fake_reallocate(allocator, name.encode(), before, ctypes.c_uint64(size))
        if not address:
            self.log(ERROR, f"The output allocator of {name} returned nullptr.")
            return False
        context["addresses"][name] = int(address)
        dims.take(array.shape)
        self.engine.fake_notify(allocator, name.encode(), ctypes.byref(dims))
        return True


def _held(dtype: str) -> str:
    """The type of a tensor in the engine's memory."""
    return "int32" if OLD and dtype == "int64" else dtype


def _named(engine: Any, name: bytes) -> dict[str, Any]:
    tensors = engine["inputs"] + engine["outputs"]
    return next(tensor for tensor in tensors if tensor["name"] == name.decode())


def _at(address: int, shape: tuple[int, ...], dtype: str) -> Any:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_uint8 * size).from_address(address)
    return np.ctypeslib.as_array(raw).view(dtype).reshape(shape)
