r"""Recurrent layers as the linear operations, activations and products that their steps are made of.

With the gates in the order in which torch keeps their weights, and :math:`[\cdot]` the linear operations of a step,

.. math::

    \text{LSTM: } c_t = \sigma(f) \odot c_{t-1} + \sigma(i) \odot \tanh(g), \quad h_t = \sigma(o) \odot \tanh(c_t),
    \quad (i, f, g, o) = [W x_t + b] + [U h_{t-1} + b']

.. math::

    \text{GRU: } h_t = (1 - z) \odot \tanh([x_n] + r \odot [h_n]) + z \odot h_{t-1}, \quad r = \sigma([x_r] + [h_r]),
    \quad z = \sigma([x_z] + [h_z])

Each finds its rule as anywhere else: what a gate gets of a product is up to the rule of products.

Source: :cite:`arras2017,arras2019`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Tensor, Tensor | None], State]
"""One step: its input behind the weights, the state (h, or h and c), the weights and the bias of h; the next state."""


def _lstm(x: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    h, c = state
    i, f, g, o = (x + functional.linear(h, weight, bias)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    (h,) = state
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), functional.linear(h, weight, bias).chunk(3, -1)
    z = (x_z + h_z).sigmoid()
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return ((1 - z) * n + z * h,)


def _rnn(activation: Callable[[Tensor], Tensor]) -> Step:
    return lambda x, state, weight, bias: (activation(x + functional.linear(state[0], weight, bias)),)


def _cell(step: Step, x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, *biases: Tensor | None) -> Any:
    """``lstm_cell`` and its kin: one step."""
    b_ih, b_hh = biases or (None, None)
    state = step(functional.linear(x, w_ih, b_ih), _state(hx), w_hh, b_hh)
    return state[0] if isinstance(hx, Tensor) else state


def _layers(step: Step, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """``lstm`` and its kin: all steps of all layers, of sequences [N, T, F] or [T, N, F] or packed ones."""
    if isinstance(args[0], Tensor) and isinstance(args[2], Sequence):
        sizes, hx, weights, biased, layers, dropout, training, bidirectional = args
        sizes, batch_first = sizes.tolist(), False
    else:
        sizes, (hx, weights, biased, layers, dropout, training, bidirectional, batch_first) = None, args
    x = x.transpose(0, 1) if batch_first else x
    directions = 2 if bidirectional else 1
    count = len(weights) // (layers * directions)
    finals = []
    for layer in range(layers):
        sides = []
        for side in range(directions):
            place = layer * directions + side
            own = list(weights[place * count : (place + 1) * count])
            initial = tuple(part[place] for part in _state(hx))
            y, final = _sequence(step, x, initial, own, biased=biased, sizes=sizes, reverse=side == 1)
            sides.append(y)
            finals.append(final)
        x = torch.cat(sides, -1) if bidirectional else sides[0]
        if dropout and layer < layers - 1:
            x = functional.dropout(x, dropout, training)
    return (x.transpose(0, 1) if batch_first else x), *map(torch.stack, zip(*finals, strict=True))


def _sequence(
    step: Step,
    x: Tensor,
    initial: State,
    weights: list[Tensor],
    *,
    biased: bool,
    sizes: list[int] | None,
    reverse: bool,
) -> tuple[Tensor, State]:
    """One layer in one direction: its output and its last state."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if biased else (None, None)
    projection = rest[-1] if len(rest) % 2 else None  # of an LSTM with proj_size
    read = functional.linear(x, w_ih, b_ih)
    steps = list(read.unbind() if sizes is None else torch.split(read, sizes))
    state, ended, outputs = tuple(part[: len(steps[-1] if reverse else steps[0])] for part in initial), [], []
    for now in reversed(steps) if reverse else steps:
        rows, before = len(now), len(state[0])
        if rows < before:  # the shorter ones of packed sequences have ended,
            ended.append(tuple(part[rows:] for part in state))
            state = tuple(part[:rows] for part in state)
        elif rows > before:  # or begin only now, seen from behind
            state = tuple(torch.cat([part, new[before:rows]]) for part, new in zip(state, initial, strict=True))
        state = step(now, state, w_hh, b_hh)
        if projection is not None:
            state = (functional.linear(state[0], projection), *state[1:])
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    outputs = outputs[::-1] if reverse else outputs
    return torch.stack(outputs) if sizes is None else torch.cat(outputs), state


def _state(hx: Any) -> State:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


_STEPS = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn(torch.tanh), "rnn_relu": _rnn(torch.relu)}
RECURRENT: dict[str, Callable[..., Any]] = {
    **{name: partial(_layers, step) for name, step in _STEPS.items()},
    **{f"{name}_cell": partial(_cell, step) for name, step in _STEPS.items()},
}
"""By the plain names of the functions of torch."""
