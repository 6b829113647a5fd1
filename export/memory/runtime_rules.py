"""What runtimes do with the operators of a network, as far as memory is concerned.

An operator in none of these sets may need memory or not: nothing is claimed for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...targets.runtimes.runtime import Runtime


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


VIEWS = _names(
    """Identity Dropout Reshape Flatten Squeeze Unsqueeze Transpose Slice Split Pad Expand Tile Cast
    CastLike QuantizeLinear DequantizeLinear DepthToSpace SpaceToDepth"""
)
"""The same numbers elsewhere, or in another shape or type: who reads the result may read the input."""
POINTWISE = _names(
    """Relu LeakyRelu PRelu Sigmoid HardSigmoid HardSwish Tanh Elu Selu Celu Gelu Mish Softplus Softsign
    Swish ThresholdedRelu Clip Abs Neg Exp Log Sqrt Reciprocal Erf Floor Ceil Round Sign Sin Cos Not
    Shrink BatchNormalization"""
)
"""Number by number: done while the input is made, or over it."""
ROWS = _names(
    """InstanceNormalization LayerNormalization GroupNormalization RMSNormalization LpNormalization Softmax
    LogSoftmax Hardmax"""
)
"""Row by row: written over the input too, as ONNX Runtime does with softmax."""
SUMS = _names(
    """Add Sub Mul Div Min Max Pow Sum Mean Where And Or Xor Equal Greater Less GreaterOrEqual LessOrEqual
    Mod"""
)
"""Of several values, number by number."""
WHOLE = _names(
    """Conv ConvTranspose Gemm MatMul MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean
    ReduceSum ReduceMax ReduceMin Resize Upsample LSTM GRU RNN ConvInteger MatMulInteger"""
)
"""Reads its inputs from memory before it writes a result of its own."""
PRODUCTS = _names("""Conv ConvTranspose Gemm MatMul LSTM GRU RNN Gather""")
"""What reads weights."""
COMMUTING = _names("""MaxPool AveragePool GlobalAveragePool Resize Concat""")
"""Quantization may be moved past these."""
REINTERPRETED = _names("""Identity Dropout Reshape Flatten Squeeze Unsqueeze""")
"""Not moved at all."""
SHAPES = _names("""Shape Size""")
"""Known before the run, once the batch is."""


@dataclass(frozen=True)
class Rules:
    """What a runtime does without memory of its own, beyond what every runtime here may do."""

    joins: bool
    """Values are written side by side by those who make them, so that Concat moves nothing."""
    chains: bool
    """A depthwise convolution is done inside the product that follows it."""
    attention: bool
    """Products of two values, and the softmax between them, are one kernel, as in flash attention."""
    gates: bool
    """A value times a function of itself, as in SiLU, is written over the value."""


def rules_for(runtime: Runtime) -> Rules:
    """By what the runtime says of itself: all of them, or none."""
    return Rules(*[runtime.fuses] * 4)
