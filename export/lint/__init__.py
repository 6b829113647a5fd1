"""What TensorRT of a board will refuse in an ONNX file, or run slowly, known without TensorRT.

run          lint(path, target=...): the table of all rules, and what they found
operators    rules 101 to 107: the file and its operators; restrictions: what single operators must not say
explicit     rules 201 to 208: what the parser demands of QuantizeLinear and DequantizeLinear
fusion       rules 301 to 308: where a legal pair costs the time that it was to save
widths       rules 401 to 403: channels, changes of precision, what stays in FP32
dla          rules 501 to 504: what the deep learning accelerator hands back to the GPU

A rule is a function of a network and a platform that yields findings. An error is what TensorRT refuses, a
warning what it runs slowly, a note what is good to know.
"""
