"""Lint: what a board's TensorRT will refuse in an ONNX file, or run slowly, without TensorRT.

check        lint(path, target=...): the table of all rules, and their findings
operators    rules 101 to 109: the file and its operators; restrictions: limits of single operators
platform     a version of TensorRT: its operator table, what later versions learnt, the plugins
explicit     rules 201 to 208: the parser's rules for QuantizeLinear and DequantizeLinear
fusion       rules 301 to 308: valid pairs that cost more time than they save
widths       rules 401 to 403: channels, changes of precision, what stays in FP32
dla          rules 501 to 505: what the deep learning accelerator (DLA) leaves to the GPU

A rule is a function of a network and a platform that yields findings. TensorRT refuses the file for an
error, runs it slowly for a warning; a note is information.
"""
