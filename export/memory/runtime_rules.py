"""Rules of runtimes: how they execute operators, as far as memory is concerned.

Nothing is claimed for an operator in none of these sets. A runtime that `fuses` has four more rules:
producers write into the result of a Concat, which then moves nothing; a depthwise convolution is fused into
the product that follows it; products of two values, and the softmax between them, are one kernel, as in flash
attention; a value times a function of itself, as in SiLU, is computed in place.
"""

from __future__ import annotations


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


VIEWS = _names(
    """Identity Dropout Reshape Flatten Squeeze Unsqueeze Transpose Slice Split Pad Expand Tile Cast
    CastLike QuantizeLinear DequantizeLinear DepthToSpace SpaceToDepth"""
)
"""The same values elsewhere, or in another shape or type: a reader may read the input instead."""
POINTWISE = _names(
    """Relu LeakyRelu PRelu Sigmoid HardSigmoid HardSwish Tanh Elu Selu Celu Gelu Mish Softplus Softsign
    Swish ThresholdedRelu Clip Abs Neg Exp Log Sqrt Reciprocal Erf Floor Ceil Round Sign Sin Cos Not
    Shrink BatchNormalization"""
)
"""Element by element: fused into the producer, or in place."""
ROWS = _names(
    """InstanceNormalization LayerNormalization GroupNormalization RMSNormalization LpNormalization Softmax
    LogSoftmax Hardmax"""
)
"""Row by row: in place too, as ONNX Runtime does with softmax."""
SUMS = _names(
    """Add Sub Mul Div Min Max Pow Sum Mean Where And Or Xor Equal Greater Less GreaterOrEqual LessOrEqual
    Mod"""
)
"""Several inputs, element by element."""
WHOLE = _names(
    """Conv ConvTranspose Gemm MatMul MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean
    ReduceSum ReduceMax ReduceMin Resize Upsample LSTM GRU RNN ConvInteger MatMulInteger"""
)
"""These read their inputs from memory before they write a separate result."""
PRODUCTS = _names("""Conv ConvTranspose Gemm MatMul LSTM GRU RNN Gather""")
"""Operators that read weights."""
COMMUTING = _names("""MaxPool AveragePool GlobalAveragePool Resize Concat""")
"""Operators past which quantization may be moved."""
REINTERPRETED = _names("""Identity Dropout Reshape Flatten Squeeze Unsqueeze""")
"""The data is not moved."""
SHAPES = _names("""Shape Size""")
"""Known before the run, for a given batch."""
