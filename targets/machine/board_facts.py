"""What a machine is and what can run on it: the facts that a target is made of."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ..errors import TargetError
from . import jetson
from .cuda import open_cuda
from .jetson import text_of, tool
from .probe import cpu_name, memory_bytes, versions

_SMI = ("name", "compute_cap", "memory.total", "clocks.max.sm")


def board_facts(root: Path = Path("/")) -> Dict[str, Any]:
    """Plain values for JSON, None where unknown. `memory_bytes` is the card's own memory where it has one.

    board: model, soc, jetpack, l4t, tensorrt, cuda, compute_capability. runtimes: name and version of each
    that works in this Python (`trtexec` is a program). Further sms, memory_bytes, dla_cores, power_mode, and
    clocks in hertz.
    """
    known = jetson.read_board(root) if jetson.is_jetson(root) else None
    names = ("model", "soc", "jetpack", "l4t", "tensorrt", "cuda", "compute_capability")
    board: Dict[str, Optional[str]] = {name: getattr(known, name, None) for name in names}
    state = jetson.read_state(root, tools=True)
    card = {} if known else _card(root)
    gpu = device_facts() or {}
    # The runtime that will run there knows its GPU better than a table of chips.
    capability = gpu.get("compute_capability") or card.get("compute_cap")
    board["compute_capability"] = capability or board["compute_capability"]
    board["cuda"] = board["cuda"] or gpu.get("cuda", {}).get("runtime")
    board["model"] = board["model"] or card.get("name") or cpu_name(root)
    runtimes = _runtimes(root, board["tensorrt"])
    board["tensorrt"] = board["tensorrt"] or {one["name"]: one["version"] for one in runtimes}.get("tensorrt")
    megabytes = card.get("memory.total", "")
    return {
        "board": board,
        "runtimes": runtimes,
        "sms": gpu.get("streaming_multiprocessors"),
        "memory_bytes": int(megabytes) << 20 if megabytes.isdigit() else memory_bytes(root),
        "dla_cores": _dla_cores(root) if known else 0,
        "power_mode": None if state.power_mode is None else asdict(state.power_mode),
        "clocks": {name: asdict(clock) for name, clock in state.clocks.items()},
    }


def card_facts(root: Path = Path("/")) -> Dict[str, Tuple[Any, str, str]]:
    """The facts of a target about this machine's card: value, source and certainty, where known.

    The version of TensorRT is that of the installed package; nothing of it is imported.
    """
    gpu, card = device_facts() or {}, _card(root)
    by_cuda, by_smi = "CUDA on this machine", "nvidia-smi on this machine"
    installed = versions("tensorrt")
    read = {
        "compute_capability": (gpu.get("compute_capability"), by_cuda, "high"),
        "streaming_multiprocessors": (gpu.get("streaming_multiprocessors"), by_cuda, "high"),
        "cuda": (gpu.get("cuda", {}).get("runtime"), by_cuda, "high"),
        "tensorrt": (installed.get("tensorrt"), "the Python package installed here", "high"),
    }
    if card:
        read["compute_capability"] = (card["compute_cap"], by_smi, "high")
        if card["memory.total"].isdigit():
            read["memory_bytes"] = (int(card["memory.total"]) << 20, by_smi, "high")
        if card["clocks.max.sm"].isdigit():
            read["gpu_hz"] = (int(card["clocks.max.sm"]) * 1_000_000, f"{by_smi}; the highest clock", "low")
    return {name: fact for name, fact in read.items() if fact[0] is not None}


def device_facts() -> Optional[Dict[str, Any]]:
    """Facts about the GPU; None without a CUDA binding, which TensorRT itself does not need."""
    try:
        opened = open_cuda()
        return {
            "compute_capability": opened.compute_capability(),
            "streaming_multiprocessors": opened.attribute("streaming_multiprocessors"),
            "integrated": bool(opened.attribute("integrated")),
            "cuda": opened.versions(),
        }
    except TargetError:
        return None


def _card(root: Path) -> Mapping[str, str]:
    """The first card as `nvidia-smi` lists it; empty without one. Memory is in MiB, clocks are in MHz."""
    query = f"--query-gpu={','.join(_SMI)}"
    program = shutil.which("nvidia-smi") if root == Path("/") else None
    lines = tool(root, program or "usr/bin/nvidia-smi", query, "--format=csv,noheader,nounits").splitlines()
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    return dict(zip(_SMI, values)) if len(values) == len(_SMI) else {}


def find_trtexec(root: Path = Path("/")) -> Optional[Path]:
    """trtexec in the path, or where JetPack installs it; None if missing."""
    program = shutil.which("trtexec") if root == Path("/") else None
    usual = root / "usr/src/tensorrt/bin/trtexec"
    return Path(program) if program else usual if usual.is_file() else None


def _runtimes(root: Path, tensorrt: Optional[str]) -> List[Dict[str, Optional[str]]]:
    found: List[Dict[str, Optional[str]]] = []
    for name in ("tensorrt", "onnxruntime"):
        try:
            found.append({"name": name, "version": str(importlib.import_module(name).__version__)})
        except Exception:  # a library built for another numpy may raise anything
            continue
    if find_trtexec(root):
        found.append({"name": "trtexec", "version": tensorrt})
    return found


def _dla_cores(root: Path) -> Optional[int]:
    """The DLA cores in the device tree; None without a tree. Those of a smaller module are disabled there."""
    tree = root / "proc/device-tree"
    cores = [place for depth in ("", "*/", "*/*/") for place in tree.glob(f"{depth}nvdla[0-9]@*")]
    return sum(text_of(place / "status").strip("\0") != "disabled" for place in cores) if cores else None
