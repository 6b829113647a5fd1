"""NVIDIA's own parser, asked about a file: TensorRT's, or that of TensorRT-RTX, which needs no GPU.

It runs in a child process with a time limit, since it can crash: a computed scale ends TensorRT-RTX 1.7.1
with a segmentation fault. TensorRT-RTX is another product than a Jetson's TensorRT: newer than most of them,
always strongly typed, without plugins, with fewer kernels. Its builder is asked too, for the compute
capability nearest to Orin's, where the file is small and only the batch is free.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deadweight.targets.engines.log import FLAVOURS, heard, import_tensorrt
from deadweight.targets.errors import TargetError

LIMIT_S = 300.0
LARGEST_BUILD_BYTES = 32 << 20
NEAREST = "SM86"  # to Orin's 8.7, which TensorRT-RTX does not build for
_NOT_THERE = 3
_LONGEST = 300  # of a reason, in characters


@dataclass(frozen=True)
class Opinion:
    """The answer of NVIDIA's parser to a file.

    Attributes:
        version: of the TensorRT that was asked.
        rtx: whether it is TensorRT-RTX, which alone builds for a GPU that is not here.
        refused: why the parser refuses the file; "" where it does not.
        ended: how the process ended, if it crashed or was stopped; "" otherwise.
        built: whether the builder built it; None where it was not asked.
        unbuilt: why the builder did not.
    """

    version: str
    rtx: bool = False
    refused: str = ""
    ended: str = ""
    built: bool | None = None
    unbuilt: str = ""

    @property
    def taken(self) -> bool:
        """Whether neither parser nor builder refused it, and the process lived."""
        return not (self.refused or self.ended or self.unbuilt)


def ask(path: Path, *, limit_s: float = LIMIT_S) -> Opinion:
    """Asks this Python's TensorRT, or else its TensorRT-RTX; a TargetError if neither can be asked here."""
    reasons = []
    for flavour in FLAVOURS:
        found = _asked(flavour, path, limit_s)
        if isinstance(found, Opinion):
            return found
        reasons.append(found)
    raise TargetError(
        f"NVIDIA's parser cannot be asked here: {'; '.join(reasons)}.",
        "TensorRT-RTX needs no GPU for it: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings.",
    )


def _asked(flavour: str, path: Path, limit_s: float) -> Opinion | str:
    """The opinion; or why this flavour cannot be asked."""
    command = [sys.executable, "-m", __name__, flavour, str(path)]
    ended = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
        printed, code = done.stdout, done.returncode
        if code == _NOT_THERE:
            return done.stderr.strip().rstrip(".")
        if code:
            ended = f"it ended with signal {-code}" if code < 0 else f"it ended with code {code}"
    except subprocess.TimeoutExpired as error:
        printed = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        ended = f"no answer in {limit_s:g} s"
    answers: dict[str, Any] = {"version": "of unknown version"}
    for line in printed.splitlines():
        if line.startswith("{"):
            answers.update(json.loads(line))
    return Opinion(ended=ended, **answers)


def _answers(flavour: str, path: Path) -> Iterator[dict[str, Any]]:
    """In the child: what is known, as soon as it is."""
    trt = import_tensorrt(flavour)
    with heard(trt) as (logger, said):
        yield {"version": trt.__version__, "rtx": hasattr(trt, "ComputeCapability")}
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(path)):
            errors = [parser.get_error(place).desc() for place in range(parser.num_errors)]
            yield {"refused": _short(errors)}
            return
        named = getattr(getattr(trt, "ComputeCapability", None), NEAREST, None)
        if named is None or path.stat().st_size > LARGEST_BUILD_BYTES:
            return  # it builds for this machine's GPU only
        inputs = [network.get_input(place) for place in range(network.num_inputs)]
        if any(size == -1 for each in inputs for size in tuple(each.shape)[1:]):
            return
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        config.num_compute_capabilities = 1
        config.set_compute_capability(named, 0)
        for each in inputs:
            if -1 in tuple(each.shape):
                profile.set_shape(each.name, *[(1, *tuple(each.shape)[1:])] * 3)
        config.add_optimization_profile(profile)
        built = builder.build_serialized_network(network, config) is not None
        yield {"built": built}
        if not built:
            yield {"unbuilt": _short([text for kind, text in said if "error" in kind])}


def _short(reasons: list[str]) -> str:
    text = "; ".join(" ".join(reason.split()) for reason in reasons) or "without a reason"
    return text[:_LONGEST].rstrip(".")


if __name__ == "__main__":
    try:
        for answer in _answers(sys.argv[1], Path(sys.argv[2])):
            print(json.dumps(answer), flush=True)
    except TargetError as error:
        print(f"{sys.argv[1]}: {error.what.rpartition(': ')[2]}", file=sys.stderr)
        sys.exit(_NOT_THERE)
    except TypeError as error:  # its Builder cannot be made without a GPU
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        sys.exit(_NOT_THERE)
