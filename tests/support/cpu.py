"""What tests need to know of this machine's processor."""

from __future__ import annotations

from pathlib import Path

import pytest

INFO = Path("/proc/cpuinfo")


def _saturates() -> bool:
    """Whether ONNX Runtime's products of uint8 and int8 may saturate: x86 without VNNI adds in 16 bits."""
    lines = INFO.read_text().splitlines() if INFO.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "avx2" in flags.split() and "vnni" not in flags


exact_int8 = pytest.mark.skipif(
    _saturates(), reason="this processor has no VNNI: INT8 products of ONNX Runtime saturate"
)
