"""Whether the samples of a batch depend on each other, in which case no sample has a map of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_xai._guard import forward, forward_context, isolated_eval
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.network_facts import NetworkFacts
from lightning_xai.operations.kinds import arguments, operation_name

DEPENDENT = (
    "the samples of a batch depend on each other: one gets another output among others than without them, as nodes of "
    "one graph do, or where a batch is normalised by its own statistics"
)
REMEDY = "Explain a model whose rows are independent of each other, e.g. one that takes [N, nodes, features]."


class Picks(Protocol):
    """A score, as far as it says which part of an output it reads."""

    def pick(self, output: Any) -> Any:
        """Return that part."""


# Networks whose samples were seen to be independent, by number of rows, shape, and what is read.
_independent: NetworkFacts[bool] = NetworkFacts()


def check_alone(
    model: nn.Module,
    inputs: Tensor,
    within: Any,
    samples: int,
    alone: Any,
    scores: Sequence[Picks] = (),
) -> None:
    """Refuse a model whose output for the first sample within a batch is another one than for it alone.

    Let through are networks that draw at random, and dynamic quantisation, whose steps depend on the batch a little.

    Args:
        model: The model.
        inputs: Its inputs; of a single one another row is made beside it.
        within: The output for them, or for copies of them.
        samples: How many rows that has.
        alone: The output for the first sample; a pass is made unless given.
        scores: What reads the output, of which only that part is compared; everything unless given.

    Raises:
        ValueError: If they differ.
    """
    question = (samples, inputs.shape[1:], *scores)
    known = _independent.of(model)
    if question in known:
        return
    first = torch.zeros(1, dtype=torch.long)

    def first_row(output: Any, count: int) -> list[Tensor]:
        return rows_of([score.pick(output) for score in scores] or output, count, first)

    if alone is None:
        alone = forward(at_rows(model, first), inputs[:1])
    if len(inputs) == 1:  # what is perturbed of it will stand side by side all the same
        samples = 2
        within = forward(at_rows(model, first.expand(2)), torch.cat((inputs, inputs / 2)))
    expected = first_row(alone, 1)
    quantised = any("quantized" in type(module).__module__ for module in model.modules())
    if not quantised and not same_rows(model, first_row(within, samples), expected):
        again = first_row(forward(at_rows(model, first), inputs[:1]), 1)
        if same_rows(model, again, expected):
            raise ValueError(f"{DEPENDENT}. {REMEDY}")
    known[question] = True


def check_independent(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a model whose output for every second sample changes if those beside it become the same sample.

    It takes three passes, inside :func:`lightning_xai._guard.isolated_eval`.

    Raises:
        ValueError: If so.
    """
    samples = torch.arange(len(inputs))

    def output(rows: Tensor, kept: Tensor) -> list[Tensor]:
        with isolated_eval(model):  # each by itself: a pass may change what the next one depends on, or draw
            found = forward(at_rows(model, rows), inputs[rows.to(inputs.device)])
        return rows_of(found, len(inputs), kept)

    for kept in (samples[::2], samples[1::2]):
        doubled = kept.repeat_interleave(2)
        rows = torch.cat([doubled, doubled[-1:].expand(len(inputs))])[: len(inputs)]
        places = torch.arange(len(kept)) * 2
        if not same_rows(model, output(samples, kept), output(rows, places)):
            raise ValueError(f"{DEPENDENT}. {REMEDY}")


_JOINING_NAMES = """mean sum prod var std var_mean std_mean amax amin max min median softmax log_softmax logsumexp
cumsum cumprod sort index_add scatter_add scatter_reduce"""
_JOINING_OPERATIONS = frozenset(_JOINING_NAMES.split())


def joins_rows(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], live: Sequence[Tensor]) -> bool:
    """Whether an operation may join the rows of a batch; false alarms are rare."""
    name = operation_name(func)
    if name in ("matmul", "mm", "addmm", "rmatmul"):
        tensors = [part for part in args if isinstance(part, Tensor)]
        second = tensors[0] if name == "rmatmul" else tensors[-1]
        return second.ndim == 2 and any(second is part for part in live)
    if name == "batch_norm":
        return bool(arguments(func, args, kwargs).get("training", False))
    if name not in _JOINING_OPERATIONS or not args or not isinstance(args[0], Tensor):
        return False
    axes = kwargs.get("dim", args[1] if len(args) > 1 else None)
    axes = axes if isinstance(axes, tuple | list) else (axes,)
    return any(isinstance(axis, int) and axis in (0, -args[0].ndim) for axis in axes)


# Nodes of autograd that join numbers along the axes that they have saved.
_JOINING = """Mean Sum Prod Var Std VarMean StdMean Amax Amin Max Min Median Softmax LogSoftmax Logsumexp Cumsum Cumprod
Sort IndexAdd ScatterAdd ScatterReduce LinalgVectorNorm"""
_JOINING_NODES = tuple(f"{name}Backward" for name in _JOINING.split())
_PRODUCTS = {"MmBackward0": 1, "AddmmBackward0": 2, "SparseAddmmBackward0": 2}
"""Products of matrices, and the place of the one whose rows are summed over."""


def nodes_behind(node: Any) -> Iterator[Any]:
    """The nodes of autograd's graph from one on, the node itself first."""
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            yield node


def may_join_rows(score: Tensor, leaf: Tensor) -> bool:
    """Whether a graph may join the rows of what was computed from a leaf; false alarms are rare."""
    for node in nodes_behind(score.grad_fn):
        what = _kind_of_node(node.name())
        if what is not None and _joins(node, what, leaf):
            return True
    return False


def _joins(node: Any, what: str, leaf: Tensor) -> bool:
    if what == "product":
        summed, _ = node.next_functions[_PRODUCTS[node.name()]]
        return any(getattr(other, "variable", None) is leaf for other in nodes_behind(summed))
    if what == "norm":
        return bool(node._saved_training)
    return what == "joining" and _along_rows(node)


@lru_cache(maxsize=1024)
def _kind_of_node(name: str) -> str | None:
    if name in _PRODUCTS:
        return "product"
    if name.startswith("NativeBatchNorm"):
        return "norm"
    return "joining" if name.startswith(_JOINING_NODES) else None


def _along_rows(node: Any) -> bool:
    axes = getattr(node, "_saved_dim", None)
    if axes is None:
        return False  # over everything: a score of one number, or none
    axes = axes if isinstance(axes, tuple | list) else (axes,)
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    ndim = len(sizes) if sizes is not None else len(node._input_metadata[0].shape) + 1
    # Saved as unsigned numbers.
    signed = [axis - 2**64 if axis >= 2**63 else axis for axis in axes]
    return any(axis == 0 or axis == -ndim for axis in signed)


def rows_of(output: Any, samples: int, rows: Tensor) -> list[Tensor]:
    """The rows of all tensors of an output that have one per sample; of a list, the entries for each sample."""
    if isinstance(output, Tensor):
        fits = output.ndim > 0 and len(output) == samples and output.is_floating_point()
        return [output.detach()[rows.to(output.device)]] if fits else []
    if isinstance(output, list) and output and all(isinstance(part, Mapping) for part in output):
        return []  # detections, whose number and order rounding may change
    if isinstance(output, Mapping):
        return [found for part in output.values() for found in rows_of(part, samples, rows)]
    if isinstance(output, tuple | list):
        return [found for part in output for found in rows_of(part, samples, rows)]
    return []


def row_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The largest difference of two outputs, relative to the largest number; infinite if their forms differ.

    >>> row_difference([torch.tensor([4.0, 2.0])], [torch.tensor([4.0, 1.0])])
    0.25
    """
    if len(first) != len(second):
        return float("inf")
    largest = 0.0
    for one, other in zip(first, second, strict=True):
        if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
            return float("inf")
        one, other = one.double().nan_to_num(0.0, 0.0, 0.0), other.double().nan_to_num(0.0, 0.0, 0.0)
        off = float((one - other).abs().max()) if one.numel() else 0.0
        largest = max(largest, off / max(float(one.abs().max()), 1e-30) if off else 0.0)
    return largest


def same_rows(model: nn.Module, first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two outputs of a model agree up to what another size of the batch rounds otherwise."""
    return row_difference(first, second) <= rounding_of(model, first)


def rounding_of(model: nn.Module, outputs: Sequence[Tensor]) -> float:
    """The difference that rounding in a model's passes explains; kernels round otherwise for batches of other sizes."""
    dtypes = {tensor.dtype for tensor in (*outputs, *model.parameters()) if tensor.is_floating_point()}
    with forward_context():
        autocast = any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
    if autocast or dtypes & {torch.float16, torch.bfloat16}:
        return 0.2
    # Networks in double precision may compute norms and angles in single, as Llama's do.
    return 1e-5 if dtypes == {torch.float64} else 0.02
