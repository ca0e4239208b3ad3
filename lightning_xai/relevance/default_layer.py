"""The layer that class activation maps look at unless one is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_xai._guard import forward_context, observe_modules
from lightning_xai.axes.facts import AxisFacts, facts_of
from lightning_xai.axes.shadows import Shadow, ShadowedPass
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.operations import check_visible, unwrapped

# A linear layer is a branch of a block or the classifier itself; the others are what stands before them.
_PASSED_OVER = (nn.Linear, nn.Identity, _DropoutNd)
_LINEAR_OF_TRANSFORMERS = "Conv1D"  # by its name, as it is not torch's


def default_layer(model: nn.Module, x: Tensor, score: Callable[[Any], Tensor]) -> tuple[str, AxisFacts]:
    """Find the last layer that has a grid of positions, and on which the score depends at most of them.

    It runs once, gives one row per sample, one axis of units and a full grid of more than one cell, and is no linear
    layer, identity or dropout. The gradient of the score is not 0 at more than half of its cells, which leaves out what
    follows the choice of a class token, and in more than one channel, which leaves out the map of a class itself. It
    stands in no branch that is pooled before it changes what keeps its positions, such as the one that finds how a
    spatial transformer turns an image. It takes one pass of two rows, forward and backward.

    Args:
        model: The network, inside :func:`lightning_xai._guard.isolated_eval`.
        x: Inputs; the first one is used.
        score: The score of each of two rows of an output of the model.

    Raises:
        ValueError: If there is none.
    """
    rows, model = x[:1].expand(2, *x.shape[1:]).clone(), at_rows(model, torch.zeros(2, dtype=torch.long))
    runs: Counter[str] = Counter()
    seen: dict[str, tuple[Tensor, Shadow]] = {}

    def see(name: str, output: Any) -> None:
        runs[name] += 1
        if isinstance(output, Tensor) and output.is_floating_point():
            with torch._C.DisableTorchFunction():  # what is computed here is no operation of the model
                shadow = shadows.shadow_of(output)
            seen.pop(name, None)
            module = model.get_submodule(name)
            passed_over = isinstance(module, _PASSED_OVER) or type(module).__name__ == _LINEAR_OF_TRANSFORMERS
            if shadow is not None and not passed_over:
                seen[name] = output, shadow

    with torch.enable_grad():
        inputs = rows.requires_grad_().clone()  # a leaf may not be changed in place
        shadows = ShadowedPass(unwrapped(model), inputs)
        with observe_modules(model, see), shadows, forward_context():
            output = model(inputs)
        value = score(output).sum()
        once = {name: found for name, found in seen.items() if runs[name] == 1}
        gradients: dict[str, Tensor | None] = {}
        if value.requires_grad:  # otherwise no layer is better than another
            reached = [name for name, (output, _) in once.items() if output.requires_grad]
            once = {name: once[name] for name in reached}
            if once:
                slopes = torch.autograd.grad(value, [output for output, _ in once.values()], allow_unused=True)
                gradients = dict(zip(once, slopes, strict=True))
    kept = _positional_nodes(value, rows)
    for name, (output, shadow) in reversed(once.items()):
        if kept is not None and output.grad_fn not in kept:
            continue
        facts = facts_of(output, shadow)
        if facts is not None and facts.has_rows and facts.grid is not None and torch.Size(facts.grid).numel() > 1:
            slope = gradients.get(name)
            if not value.requires_grad or (slope is not None and _is_read(facts.to_grid(slope)[0])):
                return name, facts
    check_visible(model)
    raise ValueError(
        "no layer was found that runs once and returns channels at a grid of positions of the input, at most of which "
        "the score depends on them, and other than by a branch that is pooled: name one with layer='...', and say with "
        "reshape=... where its positions lie, if that cannot be told; one call of several is layer=Site('...', call=0)."
    )


# Nodes of autograd that take single positions, which may be put together again.
_PICKING = ("Select", "Unbind", "Squeeze", "Slice", "Split", "Index", "Gather")


def _positional_nodes(value: Tensor, leaf: Tensor) -> set[Any] | None:
    """The nodes of autograd whose positions may reach what is pooled last; None if the leaf's do not.

    None, too, if a position is picked last, as a class token is: what it has pooled before is no branch.
    """
    last, pooled = set[Any](), set[Any]()
    waiting: list[Any] = [value.grad_fn] if value.requires_grad else []
    while waiting:
        node = waiting.pop()
        if not _is_pooled(node):
            last.add(node)
        elif node not in pooled:
            pooled.add(node)
            parts = [part for part, _ in node.next_functions if part is not None]
            if node.name().startswith(_PICKING) and not all(map(_is_pooled, parts)):
                return None
            waiting += parts
    kept, waiting = set[Any](), [*last]
    while waiting:
        node = waiting.pop()
        if node not in kept:
            kept.add(node)
            holds = not _is_pooled(node) or node.name().startswith(_PICKING)
            waiting += [part for part, _ in node.next_functions if part is not None and (holds or _is_pooled(part))]
    return kept if any(getattr(node, "variable", None) is leaf for node in kept) else None


def _is_pooled(node: Any) -> bool:
    """Whether a node made [2, K] of the two rows, or has no other axis longer than 1."""
    shape = node._input_metadata[0].shape
    return len(shape) < 2 or (shape[0] == 2 and all(length == 1 for length in shape[2:]))


def _is_read(gradient: Tensor) -> bool:
    """Whether a gradient [K, *grid] is not 0 at more than half of the cells and in more than one channel."""
    used = gradient.flatten(1) != 0
    return float(used.any(0).double().mean()) > 0.5 and int(used.any(1).sum()) > 1
