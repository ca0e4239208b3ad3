"""Explanations that several metrics of one batch share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.inputs import InputsLike
from lightning_xai.metrics.base import Ids
from lightning_xai.scores import Target

_made: ContextVar[list[tuple[Attribution, Explanation]] | None] = ContextVar("made", default=None)


@contextmanager
def shared_explanations() -> Iterator[None]:
    """Explain one batch: equal attributions are asked once."""
    token = _made.set([])
    try:
        yield
    finally:
        _made.reset(token)


def explain_once(
    attribution: Attribution,
    model: nn.Module,
    inputs: InputsLike,
    target: Target = None,
    sample_ids: Ids = None,
    details: Sequence[str] = (),
) -> Explanation:
    """Return what ``attribution.explain`` gives; inside :func:`shared_explanations` what an equal one gave before."""
    made = _made.get()
    for other, explanation in made or ():
        if other == attribution and set(details) <= set(explanation.details):
            return explanation
    explanation = attribution.explain(model, inputs, target, sample_ids, details=details)
    if made is not None:
        made.append((attribution, explanation))
    return explanation
