"""The table of rules: the effect of each operator on identities. Most operators need no rule.

layout      view, permute, cat, split, roll ...            the operator itself runs on the identities
pointwise   add, relu, batch norm at inference ...         identities of the operands are united
mixing      linear, convolution, attention ...             the reduced axis is united with the weight's
                                                           columns, the output has its rows
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from . import layout, mixing
from .calls import Call, Result, Rule, Tracked, along_channels, fixed, meet, unknown, widened

Axes = tuple[Tensor | None, ...]


def open_ended(call: Call) -> Result:
    """Zeros and the like: they take the width of their users."""
    return [widened(call, fixed(shape)) for shape in call.shapes]


def pointwise(call: Call) -> Result:
    """Operands are broadcast; along each axis those of full size are narrowed alike."""
    return [meet(call, call.operands(), shape) for shape in call.shapes]


def per_channel(call: Call) -> Result:
    """Batch norm, instance norm, PReLU: each channel on its own, with its own parameters."""
    x = call.operands()[0]
    if call.name != "prelu" and (call["running_mean"] is None or call["training"] or call["use_input_stats"]):
        call.renormalise(x.axes[0], *x.axes[2:])  # statistics over all other axes
    vectors = [one for one in call.operands()[1:] if one.shape[0] > 1 or x.shape[1] == 1]
    others = [along_channels(one, len(x.shape)) for one in vectors]
    return [meet(call, [x, *others], x.shape), *(fixed(shape) for shape in call.shapes[1:])]


def layer_norm(call: Call) -> Result:
    """Normalised over the last axes: exact only if none of them is narrowed."""
    x = call["input"]
    call.renormalise(*x.axes[-len(call["normalized_shape"]) :])
    return [
        meet(call, [x, call["weight"], call["bias"]], x.shape),
        *(fixed(shape) for shape in call.shapes[1:]),
    ]


def group_norm(call: Call) -> Result:
    """Normalised over the members of each group: whole groups are removed, or the same rank in each."""
    x = call["input"]
    _, ranks = call.split(x.axes[1], call["num_groups"])
    call.renormalise(ranks, *x.axes[2:])
    affine = [along_channels(call[name], len(x.shape)) for name in ("weight", "bias")]
    return meet(call, [x, *affine], x.shape)


def along(call: Call) -> Result:
    """Softmax, cumulative sums, Fourier transforms: the axes along which they run cannot be narrowed."""
    x = call.operands()[0]
    dims = call["dim"] if call["dim"] is not None else range(-len(call["s"] or x.shape), 0)
    dims = [dims] if isinstance(dims, int) else dims
    kept = call.stay(x, dims, "values along this axis depend on each other")
    return [Tracked(shape, kept) for shape in call.shapes]


def parts_of_complex(call: Call) -> Result:
    """view_as_complex and view_as_real: the last axis, of two real numbers each, stays."""
    x, shape = call["self"], call.shapes[0]
    if len(shape) < len(x.shape):
        call.freeze(x.axes[-1], "its elements are the parts of complex numbers")
    return Tracked(shape, (*x.axes, None)[: len(shape)])


def triangle(call: Call) -> Result:
    """triu, tril: rows and columns are narrowed alike, so each element stays on its side of the diagonal."""
    x, diagonal = call["self"], call["diagonal"]
    strict = diagonal in ((0, 1) if call.name == "triu" else (0, -1)) and x.shape[-2] == x.shape[-1]
    if call.agree(*x.axes[-2:]) is not None and not strict:
        call.freeze(x.axes[-1], "values are kept by their distance to the diagonal")
    return Tracked(x.shape, x.axes if strict else (*x.axes[:-2], None, None))


def reduction(call: Call) -> Result:
    """A sum, mean or maximum over some axes; over fewer units it is another function."""
    x = call.operands()[0]
    dims = call["dim"] if call["dim"] is not None else []
    dims = [dims] if isinstance(dims, int) else list(dims) or list(range(len(x.shape)))
    dims = [axis % len(x.shape) for axis in dims] if x.shape else []
    for axis in dims:
        call.read(x) if call.name == "sum" and x.axes[axis] is not None else call.renormalise(x.axes[axis])
    return [Tracked(shape, _reduced(x.axes, dims, call["keepdim"])) for shape in call.shapes]


def _reduced(axes: Axes, dims: Sequence[int], kept: bool) -> Axes:
    """The axes of a reduction over some of them, which are gone, or kept with a fixed size."""
    every = enumerate(axes)
    return tuple(None if axis in dims else vector for axis, vector in every if kept or axis not in dims)


def choice(call: Call) -> Result:
    """argmax, sort, top-k: the output is positions along the axis, so the axis stays."""
    x = call.operands()[0]
    if isinstance(call["other"], Tracked):  # max(a, b), element by element
        return pointwise(call)
    dims = range(len(x.shape)) if call["dim"] is None else [call["dim"] % len(x.shape)]
    call.freeze_all((x.axes[axis] for axis in dims), "it returns positions along this axis")
    kept = [len(shape) == len(x.shape) for shape in call.shapes]
    return [Tracked(shape, _reduced(x.axes, dims, one)) for shape, one in zip(call.shapes, kept, strict=True)]


def sampling(call: Call) -> Result:
    """grid_sample, RoI pooling: each channel at positions from the data."""
    x, *others = call.operands()
    vectors = (*x.axes[2:], *(vector for other in others for vector in other.axes))
    call.freeze_all(vectors, "positions along this axis are chosen by the data")
    return [Tracked(shape, (None, x.axes[1], *(None,) * (len(shape) - 2))) for shape in call.shapes]


def comparison(call: Call) -> Result:
    """cosine_similarity, pairwise_distance: a reduction over one axis of both operands."""
    shape = torch.broadcast_shapes(*(x.shape for x in call.operands()))  # type: ignore[no-untyped-call]
    both = meet(call, call.operands(), shape)
    axis = (-1 if call["dim"] is None else call["dim"]) % len(shape)
    call.renormalise(both.axes[axis])
    return Tracked(call.shapes[0], _reduced(both.axes, [axis], call["keepdim"]))


def pooling(call: Call) -> Result:
    """Pools and resizes: only the spatial axes, whose size may change, are affected."""
    x = call.operands()[0]
    spatial = next((int(n) for n in "123" if f"{n}d" in call.name), len(x.shape) - 2)
    kept = call.stay(x, range(-spatial, 0), "a window slides over this axis")
    return [Tracked(shape, kept) for shape in call.shapes]


def weight_norm(call: Call) -> Result:
    """v g / |v|, the norm over all axes but one."""
    v, g = call["v"], call["g"]
    call.renormalise(*(vector for axis, vector in enumerate(v.axes) if axis != call["dim"]))  # -1: all
    return [meet(call, [v, g], v.shape), *(fixed(shape) for shape in call.shapes[1:])]


_WHOLE = (
    "each value depends on the whole matrix; if it parametrizes a weight, "
    "torch.nn.utils.parametrize.remove_parametrizations leaves a plain one"
)

_BRANCHES = (
    "its branches are graphs of their own; compute them all and choose with torch.where, or prune each as a "
    "network"
)

_TABLE: tuple[tuple[Rule, str], ...] = (
    (mixing.linear, "linear"),
    (mixing.einsum, "einsum"),
    (mixing.tensordot, "tensordot inner outer"),
    (mixing.cell, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    (mixing.recurrent, "lstm gru rnn_tanh rnn_relu"),
    (mixing.matmul, "matmul linalg_matmul mm bmm mv dot vdot addmm baddbmm"),
    (mixing.experts, "_grouped_mm grouped_mm_fallback"),
    (mixing.attention, "scaled_dot_product_attention"),
    (
        mixing.convolution,
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution",
    ),
    (mixing.deformable, "deform_conv2d"),
    (mixing.bilinear, "bilinear"),
    (mixing.distances, "cdist _cdist_forward"),
    (per_channel, "batch_norm instance_norm prelu"),
    (layer_norm, "layer_norm rms_norm"),
    (group_norm, "group_norm"),
    (weight_norm, "_weight_norm _weight_norm_interface"),
    (
        partial(unknown, reason=_WHOLE),
        "matrix_exp linalg_matrix_exp linalg_householder_product linalg_solve linalg_inv inverse linalg_pinv "
        "linalg_qr linalg_svd linalg_eigh linalg_cholesky",
    ),
    (partial(unknown, reason=_BRANCHES), "cond while_loop map_impl scan associative_scan"),
    (mixing.embedding, "embedding embedding_bag _embedding_bag _embedding_bag_forward_only"),
    (mixing.renormed, "embedding_renorm"),
    (
        along,
        "softmax log_softmax _safe_softmax special_softmax cumsum cumprod cummax cummin logcumsumexp fft_fft "
        "fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn "
        "fft_ifftn fft_rfftn fft_irfftn fft_fftshift fft_ifftshift",
    ),
    (parts_of_complex, "view_as_complex view_as_real"),
    (triangle, "triu tril"),
    (
        reduction,
        "mean sum amax amin var std var_mean std_mean norm linalg_vector_norm linalg_norm linalg_matrix_norm "
        "frobenius_norm logsumexp prod any all nansum nanmean count_nonzero aminmax",
    ),
    (comparison, "cosine_similarity pairwise_distance"),
    (choice, "argmax argmin max min sort argsort msort topk median nanmedian kthvalue mode"),
    (
        pooling,
        "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
        "upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    ),
    (layout.concatenation, "cat concat concatenate hstack vstack dstack column_stack row_stack"),
    (layout.stack, "stack"),
    (layout.indexing, "index index_put"),
    (
        layout.gathering,
        "gather take_along_dim scatter scatter_add scatter_reduce index_select index_add index_copy "
        "index_fill",
    ),
    (layout.windows, "unfold"),
    (layout.patches, "im2col"),
    (layout.unpatched, "col2im"),
    (sampling, "grid_sampler grid_sampler_2d grid_sampler_3d roi_align roi_pool"),
    (layout.hidden, "_add_batch_dim _remove_batch_dim"),
    (layout.halves, "glu"),
    (layout.upscaling, "pixel_shuffle"),
    (layout.shuffle, "channel_shuffle native_channel_shuffle"),
    (layout.padding, "pad constant_pad_nd"),
    (open_ended, "zeros ones full empty new_zeros new_ones new_full new_empty"),
    (
        pointwise,
        "dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout bernoulli contiguous "
        "to _to_copy detach alias clone lift_fresh_copy type_as float where masked_fill relu6 hardswish "
        "fill copy rsub real imag conj _conj resolve_conj resolve_neg complex polar log_sigmoid isclose "
        "__and__ __or__ __xor__ fake_quantize_per_tensor_affine multiply subtract divide floor_divide "
        "negative absolute fix greater greater_equal less less_equal not_equal arccos arcsin arctan "
        "arctan2 arccosh arcsinh arctanh special_expit special_erf special_exp2 special_expm1 "
        "special_log1p special_logit special_round zeros_like ones_like full_like empty_like rand_like "
        "randn_like randint_like zero",
    ),
    (
        layout.layout,
        "view reshape _unsafe_view view_as reshape_as flatten unflatten unsqueeze squeeze expand expand_as "
        "repeat tile repeat_interleave slice select narrow split split_with_sizes chunk unbind tensor_split "
        "permute transpose t movedim moveaxis swapaxes swapdims numpy_T mT mH matrix_H adjoint flip rot90 "
        "pixel_unshuffle roll broadcast_to",
    ),
)

RULES = {name: rule for rule, names in _TABLE for name in names.split()}
