"""The preset dictionary (RFC 1950, 2.2) for the skeleton: an ONNX file without its numbers.

A small network's graph consists mostly of names that every exporter writes. They are listed here, the most
frequent last, where references are shortest. A change makes another format and needs another magic number.
"""

from __future__ import annotations

_WORDS = """
com.microsoft ai.onnx pytorch torch.onnx onnxscript main_graph main graph model batch_size batch sequence
value_info producer_name kernel_shape dilations strides pads group auto_pad ceil_mode count_include_pad
epsilon momentum axis axes keepdims perm transA transB alpha beta to value mode
coordinate_transformation_mode nearest_mode allowzero keep_aspect_ratio_policy cubic_coeff_a storage_order
exclude_outside extrapolation_value Cast Gather Unsqueeze Squeeze Slice Split Shape Concat Constant
ConstantOfShape Transpose Resize Pad Erf Sqrt Pow Div Sub Mul Sum Softmax Sigmoid HardSwish HardSigmoid Tanh
LeakyRelu PRelu Clip ReduceMean GlobalAveragePool AveragePool MaxPool LayerNormalization BatchNormalization
InstanceNormalization ConvTranspose Identity Dropout images pixel_values input_ids attention_mask logits
features scores labels data image input output onnx::MatMul_ onnx::Conv_ backbone encoder decoder layers
blocks stem block layer norm bn downsample shortcut proj attn mlp self query key value dense classifier head
fc3 fc2 fc1 conv3 conv2 conv1 running_mean running_var num_batches_tracked
"""
_NODES = (
    "node_Reshape_ node_Flatten_ node_Concat_ node_Conv_ node_Add_ node_MatMul_ node_linear_ node_linear "
    "node_relu_ node_relu node_view node_conv2d_ node_conv2d flatten view relu relu_1 relu_2 linear "
    "linear_1 linear_2 "
    "\x12\x07kernel_shape@\x07\xa0\x01\x07\x08\n\x05group\x18\x01\xa0\x01\x02\x12\n\x07strides\x12\n\x04pads"
    '"\x07Flatten"\x07Reshape"\x03Add"\x06Concat"\x06MatMul"\x04Conv"\x04Relu"\x04Gemm*'
    "\n\x05alpha\x15\x00\x00\x80?\xa0\x01\x01*\x0e\n\x04beta\x15\x00\x00\x80?\xa0\x01\x01*\r\n\x06transB\x18\x01\xa0\x01\x02"
    ".weight.bias_quantize_dequantize_dequantized_scale_zero_int8"
    '.weight_int8\n.weight_scale\n.weight_zero\x12.weight_dequantized\x1a.weight_dequantize"\x10DequantizeLinear*'
    '\n\x04axis\x18\x00\xa0\x01\x02_int8_dequantized_dequantize"\x10DequantizeLinear\n_scale\n_zero\x12_int8\x1a_quantize"'
    "\x0eQuantizeLinear"
)
DICTIONARY = (" ".join(_WORDS.split()) + " " + _NODES).encode("latin-1")
