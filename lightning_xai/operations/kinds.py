"""The operations of torch by their plain names: the kinds there are, and what holds for each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.nn import functional


@dataclass(frozen=True)
class Kind:
    """Facts that hold for all operations of one kind; no other place states them.

    Attributes:
        names: The plain names of the functions of torch that make them.
        conserving: Their derivative conserves relevance as it is, so they need no rule.
        moving: They move numbers and change none.
        elementwise: They change single numbers, where they take one tensor and keep its shape.
        sign_preserving: Their results are not negative if what they read is not.
        constant: What of their relevance goes on to no input falls to constants that they bring in, as a bias is.
        transparent: An activation behind them still is that of the layer before them.
    """

    names: frozenset[str]
    conserving: bool = False
    moving: bool = False
    elementwise: bool = False
    sign_preserving: bool = False
    constant: bool = False
    transparent: bool = False


def _kind(names: str, **facts: bool) -> Kind:
    """Make a kind of the functions with these names, in which ``#`` stands for 1, 2 and 3."""
    return Kind(frozenset(name.replace("#", axes) for name in names.split() for axes in "123"), **facts)


_MOVING = {"conserving": True, "moving": True, "transparent": True}

KINDS: dict[str, Kind] = {
    "convolution": _kind("conv#d conv_transpose#d"),
    "linear": _kind("linear"),
    "matmul": _kind(
        "matmul rmatmul mm bmm mv dot vdot vecdot inner einsum tensordot addmm addmv addbmm baddbmm multi_dot "
        "chain_matmul"
    ),
    "affine_norm": _kind("batch_norm", elementwise=True, constant=True, transparent=True),
    "norm": _kind("layer_norm group_norm instance_norm rms_norm normalize renorm local_response_norm", constant=True),
    "activation": _kind(
        "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish hardtanh hardsigmoid tanh sigmoid "
        "logsigmoid log_sigmoid softplus softsign softshrink hardshrink tanhshrink threshold clamp clip clamp_min "
        "clamp_max expit logit erf erfc erfinv ndtr log_ndtr ndtri sin cos tan sinc sinh cosh asin arcsin acos arccos "
        "atan arctan asinh arcsinh acosh arccosh atanh arctanh exp exp2 expm1 log log2 log10 log1p entr lgamma digamma "
        "i0 i0e i1 i1e sqrt square pow rpow float_power abs absolute round floor ceil trunc fix frac sign sgn "
        "fake_quantize_per_tensor_affine fake_quantize_per_channel_affine",
        elementwise=True,
        constant=True,
    ),
    "softmax": _kind("softmax log_softmax softmin logsumexp logcumsumexp logaddexp logaddexp2", conserving=True),
    "sum": _kind(
        "add radd iadd sub subtract rsub isub sum nansum sum_to_size mean nanmean cumsum trace diff neg negative "
        "scatter_add index_add trapezoid trapz cumulative_trapezoid deg2rad rad2deg",
        conserving=True,
        elementwise=True,
        constant=True,
    ),
    "concatenation": _kind(
        "cat concat concatenate stack hstack vstack row_stack dstack column_stack", conserving=True, constant=True
    ),
    "product": _kind(
        "mul multiply rmul imul div divide true_divide truediv itruediv rdiv rtruediv addcmul addcdiv lerp prod "
        "outer ger kron cross",
        elementwise=True,
    ),
    "statistic": _kind(
        "var std var_mean std_mean norm vector_norm matrix_norm frobenius_norm nuclear_norm rsqrt reciprocal"
    ),
    "pooling": _kind(
        "max_pool#d max_pool#d_with_indices adaptive_max_pool#d adaptive_max_pool#d_with_indices avg_pool#d "
        "adaptive_avg_pool#d max_unpool#d fractional_max_pool#d fractional_max_pool#d_with_indices roi_pool "
        "max min amax amin aminmax maximum minimum fmax fmin cummax cummin topk kthvalue sort msort median nanmedian "
        "quantile nanquantile scatter_reduce index_reduce",
        conserving=True,
        sign_preserving=True,
    ),
    "interpolation": _kind(
        "interpolate upsample upsample_nearest upsample_bilinear affine_grid grid_sample grid_sampler grid_sampler_2d "
        "grid_sampler_3d roi_align ps_roi_align fold unfold",
        conserving=True,
    ),
    "transform": _kind(
        "fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 hfft2 ihfft2 fftn ifftn rfftn irfftn hfftn ihfftn "
        "stft istft complex real imag view_as_real view_as_complex",
        conserving=True,
    ),
    "reshape": _kind(
        "view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze permute transpose swapaxes swapdims "
        "t adjoint movedim moveaxis expand expand_as repeat tile broadcast_to broadcast_tensors repeat_interleave "
        "contiguous hsplit vsplit dsplit unsafe_split unsafe_split_with_sizes unsafe_chunk slice diag diagflat "
        "diag_embed fftshift ifftshift cartesian_prod combinations pack_padded_sequence pad_packed_sequence "
        "getitem index setitem select narrow index_select gather take take_along_dim masked_select masked_fill where "
        "split split_with_sizes tensor_split chunk unbind roll flip fliplr flipud rot90 pad diagonal tril triu copy "
        "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle as_strided scatter masked_scatter "
        "diagonal_scatter select_scatter slice_scatter as_strided_scatter index_copy index_fill index_put put zero "
        "fill fill_diagonal constant_pad_nd pad_sequence atleast_#d meshgrid block_diag nan_to_num",
        constant=True,
        **_MOVING,
    ),
    "identity": _kind(
        "clone to type float double half bfloat16 cpu cuda type_as requires_grad alias positive conj conj_physical",
        sign_preserving=True,
        **_MOVING,
    ),
    "dropout": _kind("dropout dropout#d feature_dropout alpha_dropout feature_alpha_dropout", **_MOVING),
    "attention": _kind("scaled_dot_product_attention multi_head_attention_forward"),
    "embedding": _kind("embedding embedding_bag"),
    "recurrent": _kind("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
}
KIND_OF = {name: kind for kind, facts in KINDS.items() for name in facts.names}
NAMES = frozenset(KIND_OF)
HOMOGENEOUS = frozenset({"relu", "leaky_relu", "prelu", "rrelu", "abs", "absolute"})
"""Activations with f(x) = x f'(x)."""
_MIXING_NAMES = """where masked_fill pad constant_pad_nd pad_sequence pad_packed_sequence setitem index_copy index_fill
index_put put scatter masked_scatter diagonal_scatter select_scatter slice_scatter as_strided_scatter fill fill_diagonal
copy nan_to_num"""
MIXING = frozenset(_MIXING_NAMES.split())
"""Reshapes that may bring in constants, which absorb relevance."""
LINEAR = frozenset({"convolution", "linear"})
"""Kinds of operations y = W x + b."""

_LINEAR = "input weight bias"
_WINDOW = "input kernel_size stride padding dilation ceil_mode"
_SIGNATURES: dict[str, str] = {
    "linear": _LINEAR,
    **{f"conv{n}d": f"{_LINEAR} stride padding dilation groups" for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": f"{_LINEAR} stride padding output_padding groups dilation" for n in (1, 2, 3)},
    "batch_norm": "input running_mean running_var weight bias training momentum eps",
    "layer_norm": "input normalized_shape weight bias eps",
    "rms_norm": "input normalized_shape weight eps",
    "group_norm": "input num_groups weight bias eps",
    "instance_norm": "input running_mean running_var weight bias use_input_stats momentum eps",
    "scaled_dot_product_attention": "query key value attn_mask dropout_p is_causal",
    "hardtanh": "input min_val max_val",
    "clamp": "input min max",
    "clip": "input min max",
    "clamp_min": "input min",
    "pad": "input pad mode value",
    "mm": "input mat2",
    "bmm": "input mat2",
    "mv": "input vec",
    "dot": "input tensor",
    "addmm": "input mat1 mat2",
    "addmv": "input mat vec",
    **dict.fromkeys(("addbmm", "baddbmm"), "input batch1 batch2"),
    **dict.fromkeys(("addcmul", "addcdiv"), "input tensor1 tensor2"),
    "lerp": "input end weight",
    "scatter_reduce": "input dim index src reduce",
    "index_reduce": "input dim index source reduce",
    **dict.fromkeys(("pow", "float_power"), "input exponent"),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), "input p training"),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), "tensors dim"),
    "where": "condition input other",
    **{f"max_pool{n}d": _WINDOW for n in (1, 2, 3)},
    **{f"avg_pool{n}d": "input kernel_size stride padding" for n in (1, 2, 3)},
}
_TORCH_BATCH_NORM = "input weight bias running_mean running_var training momentum eps cudnn_enabled"


def arguments(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names, those that were given: the one place that knows their order.

    >>> arguments(functional.conv1d, ("x", "w", None, 2), {"groups": 3})
    {'input': 'x', 'weight': 'w', 'bias': None, 'stride': 2, 'groups': 3}
    """
    return {**dict(zip(_order(func), args, strict=False)), **kwargs}


def _order(func: Callable[..., Any]) -> list[str]:
    name = operation_name(func)
    if name in ("batch_norm", "instance_norm") and func not in (functional.batch_norm, functional.instance_norm):
        return _TORCH_BATCH_NORM.split()  # those of torch itself have the weights before the statistics
    return _SIGNATURES.get(name, "input other").split()


def by_position(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call with its first arguments by position, also where they were given by name.

    >>> import torch
    >>> by_position(torch.mul, (), {"other": "y", "input": "x", "out": None})
    (('x', 'y'), {'out': None})
    """
    order, rest = _order(func), dict(kwargs)
    if "self" in rest:  # as operators of aten call it
        rest["input"] = rest.pop("self")
    while len(args) < len(order) and order[len(args)] in rest:
        args = (*args, rest.pop(order[len(args)]))
    return args, rest


_VIEWING_ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "real"})

_INPLACE = frozenset({"__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__", "__setitem__"})

_NAMESPACES = ("special_", "linalg_", "fft_")


@functools.lru_cache(maxsize=4096)
def operation_name(func: Callable[..., Any]) -> str:
    """The plain name of a function of the torch API.

    >>> import torch
    >>> [operation_name(func) for func in (torch.Tensor.__iadd__, torch.special.expit, torch.ops.aten.relu.default)]
    ['iadd', 'expit', 'relu']
    """
    name = str(getattr(func, "__name__", ""))
    if name == "__get__":
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        return "transpose" if attribute in _VIEWING_ATTRIBUTES else "get"
    name = name.partition(".")[0].strip("_")  # an overload of an operator of aten is `relu.default`
    return name.removeprefix(next((prefix for prefix in _NAMESPACES if name.startswith(prefix)), ""))


def kind_of(func: Callable[..., Any]) -> str | None:
    """The kind of operation that a function of the torch API makes, a key of :data:`KINDS`; None for any other.

    >>> import torch
    >>> kind_of(torch.Tensor.add_), kind_of(functional.hardswish), kind_of(torch.cdist)
    ('sum', 'activation', None)
    """
    return KIND_OF.get(operation_name(func))


@functools.lru_cache(maxsize=4096)
def _writes(func: Callable[..., Any]) -> bool:
    name = str(getattr(func, "__name__", "")).partition(".")[0]
    return name in _INPLACE or (name.endswith("_") and not name.endswith("__") and not name.startswith("_"))


def is_in_place(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Whether a call writes its result into its first argument."""
    return _writes(func) or kwargs.get("inplace") is True
