"""What tests need to know of this machine's processor."""

from __future__ import annotations

import pytest

from deadweight.targets.machine.probe import saturates_int8

exact_int8 = pytest.mark.skipif(
    saturates_int8(), reason="this processor has no VNNI: INT8 products of ONNX Runtime saturate"
)
