"""Compiles the fake: slots.json becomes slots.h, and engine.c a library for each name that is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SONAMES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin", "libnvparsers")

# Which function answers which slot. What a table has no line for stops the process with its number.
FUNCTIONS = {
    "VHostMemory": {"data": "memory_data", "size": "memory_size", "type": "memory_type"},
    "VBuilder": {
        "getNbDLACores": "builder_dla_cores",
        "getMaxDLABatchSize": "builder_dla_batch",
        "createBuilderConfig": "builder_config",
        "createNetworkV2": "builder_network",
        "createOptimizationProfile": "builder_profile",
        "buildSerializedNetwork": "builder_build",
        "platformHasFastFp16": "yes",
        "platformHasFastInt8": "yes",
        "getLogger": "builder_logger",
    },
    "VNetworkDefinition": {
        "getNbInputs": "network_inputs",
        "getInput": "network_input",
        "getNbOutputs": "network_outputs",
        "getOutput": "network_output",
        "getNbLayers": "network_layers",
        "getLayer": "network_layer",
    },
    "VTensor": {
        "getName": "tensor_name",
        "getDimensions": "tensor_dims",
        "getType": "tensor_type",
        "setType": "tensor_set_type",
        "setAllowedFormats": "tensor_set_formats",
    },
    "VLayer": {"getName": "tensor_name", "getType": "layer_type"},
    "VOptimizationProfile": {
        "setDimensions": "profile_set",
        "getDimensions": "profile_get",
        "isValid": "yes",
    },
    "VBuilderConfig": {
        "setFlag": "config_set_flag",
        "clearFlag": "config_clear_flag",
        "getFlag": "config_get_flag",
        "getFlags": "config_flags",
        "setMemoryPoolLimit": "config_set_pool",
        "getMemoryPoolLimit": "config_get_pool",
        "addOptimizationProfile": "config_add_profile",
        "setProfilingVerbosity": "config_set_verbosity",
        "getProfilingVerbosity": "config_get_verbosity",
        "setDefaultDeviceType": "config_set_device",
        "getDefaultDeviceType": "config_get_device",
        "setDLACore": "config_set_core",
        "setEngineCapability": "config_set_capability",
        "setInt8Calibrator": "config_set_calibrator",
        "getDLACore": "config_get_core",
        "canRunOnDLA": "config_on_dla",
        "createTimingCache": "config_make_cache",
        "setTimingCache": "config_set_cache",
        "getTimingCache": "config_get_cache",
        "setHardwareCompatibilityLevel": "config_set_compatibility",
        "setBuilderOptimizationLevel": "config_set_level",
    },
    "VTimingCache": {"serialize": "cache_serialize"},
    "VRuntime": {
        "deserializeCudaEngine": "runtime_open",
        "setDLACore": "runtime_set_core",
        "getDLACore": "runtime_get_core",
        "setEngineHostCodeAllowed": "runtime_allow",
        "getEngineHostCodeAllowed": "runtime_allowed",
    },
    "VCudaEngine": {
        "getNbLayers": "engine_layers",
        "serialize": "engine_serialize",
        "createExecutionContext": "engine_context",
        "createEngineInspector": "engine_inspector",
        "getTensorShape": "engine_shape",
        "getTensorDataType": "engine_dtype",
        "getTensorIOMode": "engine_mode",
        "getTensorLocation": "engine_location",
        "getProfileShape": "engine_profile",
        "getNbIOTensors": "engine_tensors",
        "getIOTensorName": "engine_name",
        "getNbOptimizationProfiles": "engine_profiles",
        "getDeviceMemorySize": "engine_activations",
        "getDeviceMemorySizeV2": "engine_activations",
        "getEngineStat": "engine_stat",
    },
    "VExecutionContext": {
        "getEngine": "context_engine",
        "setProfiler": "context_profiler",
        "getProfiler": "context_get_profiler",
        "setInputShape": "context_set_shape",
        "getTensorShape": "context_shape",
        "setTensorAddress": "context_address",
        "setOutputAllocator": "context_allocator",
        "inferShapes": "context_infer",
        "enqueueV3": "context_enqueue",
        "setOptimizationProfileAsync": "context_profile",
        "getOptimizationProfile": "context_get_profile",
        "setEnqueueEmitsProfile": "context_set_emits",
        "getEnqueueEmitsProfile": "yes",
        "reportToProfiler": "yes",
    },
    "VEngineInspector": {
        "getEngineInformation": "inspector_text",
        "setExecutionContext": "inspector_context",
    },
    "IParser": {
        "parseFromFile": "parser_file",
        "getNbErrors": "parser_errors",
        "getError": "parser_error",
        "setBuilderConfig": "parser_config",
        "setFlag": "parser_flag",
    },
    "IParserError": {
        "code": "error_code",
        "desc": "error_desc",
        "node": "error_node",
        "nodeName": "error_name",
        "nodeOperator": "error_operator",
    },
}
TABLES = {
    "VHostMemory": "memory_table",
    "VBuilder": "builder_table",
    "VNetworkDefinition": "network_table",
    "VTensor": "tensor_table",
    "VLayer": "layer_table",
    "VOptimizationProfile": "profile_table",
    "VBuilderConfig": "config_table",
    "VTimingCache": "cache_table",
    "VRuntime": "runtime_table",
    "VCudaEngine": "engine_table",
    "VExecutionContext": "context_table",
    "VEngineInspector": "inspector_table",
    "IParser": "parser_table",
    "IParserError": "error_table",
}


def header(slots: dict[str, dict[str, Any]]) -> str:
    """The tables of one major version, as macros that engine.c spreads out."""
    unfilled = " ".join(
        f"static void unfilled_{slot}(Impl *s) {{ unfilled(s, {slot}); }}" for slot in range(128)
    )
    fill = [f"{table}[{slot}] = (void *)unfilled_{slot};" for table in TABLES.values() for slot in range(128)]
    for kind, table in TABLES.items():
        if kind.startswith("V"):
            fill += [f"{table}[{slot}] = (void *)nothing;" for slot in (0, 1)]
        fill += [
            f"{table}[{slots[kind][method]}] = (void *){function};"
            for method, function in FUNCTIONS[kind].items()
            if method in slots[kind]
        ]
        fill += [f"{table}[{slot}] = (void *)nothing;" for slot in slots[kind].get("destructors", ())]
    tables = " ".join(f"TABLE({table})" for table in TABLES.values())
    # Dimensions had 32 bits, and a profile took them by value, before TensorRT 10.
    old = slots["old"]
    numbers = f"#define SIZE {'int32_t' if old else 'int64_t'}\n"
    numbers += f"#define PROFILE_DIMS {'Dims' if old else 'const Dims *'}\n"
    numbers += f"#define OF(dims) {'dims' if old else '*dims'}\n"
    numbers += f"#define LOG_SLOT {slots['ILogger']['log']}\n"
    numbers += f"#define REPORT_SLOT {slots['IProfiler']['reportLayerTime']}\n"
    numbers += f"#define REALLOCATE_SLOT {slots['IOutputAllocator']['reallocateOutput']}\n"
    numbers += f"#define SHAPE_SLOT {slots['IOutputAllocator']['notifyShape']}\n"
    numbers += f"#define CALIBRATION_SLOT {slots['IInt8Calibrator']['readCalibrationCache']}\n"
    spread = f"#define UNFILLED_FUNCTIONS {unfilled}\n#define TABLES {tables}\n"
    return f"{numbers}{spread}#define FILL {' '.join(fill)}\n"


def compile_fake(folder: Path, *, major: str) -> Path:
    """Compiles the libraries for TensorRT `major` and the fake libcudart into a folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    slots = json.loads((HERE / "slots.json").read_text("utf-8"))[major]
    slots["old"] = major == "8"
    (folder / "slots.h").write_text(header(slots), "utf-8")
    flags = ["gcc", "-std=c11", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC"]
    engine = folder / "engine.o"
    subprocess.run(
        [
            "gcc",
            "-std=c11",
            "-O1",
            "-Wall",
            "-Wextra",
            "-fPIC",
            "-c",
            "-D_GNU_SOURCE",
            "-I",
            str(folder),
            "-o",
            str(engine),
            str(HERE / "engine.c"),
        ],
        check=True,
    )
    for name in SONAMES:
        soname = f"{name}.so.{major}"
        # One object: the second and third are links, so that all three names hold the same state.
        if name == SONAMES[0]:
            subprocess.run(
                [*flags, f"-Wl,-soname,{soname}", "-o", str(folder / soname), str(engine)], check=True
            )
        else:
            other = folder / f"{name}.c"
            other.write_text("")
            subprocess.run(
                [
                    *flags,
                    f"-Wl,-soname,{soname}",
                    "-o",
                    str(folder / soname),
                    str(other),
                    str(folder / f"{SONAMES[0]}.so.{major}"),
                ],
                check=True,
            )
    subprocess.run([*flags, "-o", str(folder / "libcudart.so"), str(HERE / "cudart.c")], check=True)
    return folder


if __name__ == "__main__":
    compile_fake(Path(sys.argv[1]), major=sys.argv[2])
