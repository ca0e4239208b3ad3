"""Comparison of attributions over a data set: the core measures side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_xai.attribution import Attribution
from lightning_xai.callbacks.batch import Unpack
from lightning_xai.callbacks.collector import Results
from lightning_xai.callbacks.explain import explain
from lightning_xai.evaluation.features import RandomMap
from lightning_xai.figures.canvas import new_figure
from lightning_xai.metrics.faithfulness import Faithfulness
from lightning_xai.perturbation.kinds import Perturbation
from lightning_xai.regions import RegionsLike
from lightning_xai.results import Result, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM = "random"
_CURVES = ("deletion_curve", "insertion_curve")


@dataclass(frozen=True, eq=False)
class Comparison:
    """The core measures of several attributions, and of a random map as the floor.

    Attributes:
        results: The results of every attribution by name, as ``Faithfulness`` gives them; ``"random"`` is the floor.
        measures: The declaration of every measure by name.
    """

    results: Results
    measures: Mapping[str, Result]

    @property
    def attributions(self) -> list[str]:
        """The names of the attributions, without the floor."""
        return [name for name in self.results if name != RANDOM]

    @property
    def ranks(self) -> dict[str, list[str]]:
        """The attributions from best to worst by every measure that has a better end.

        Those of which a measure is undefined are in no rank. Ranks of different measures need not agree, and are not
        averaged: each asks another question.
        """
        found = {}
        for name, measure in self.measures.items():
            if measure.better is not None:
                values = {one: self.results[one][name] for one in self.attributions}
                known = {one: value for one, value in values.items() if math.isfinite(value)}
                found[name] = sorted(known, key=known.__getitem__, reverse=measure.better == "higher")
        return found

    def table(self) -> Table:
        """List the attributions as rows and the measures as columns: mean ± standard error, ``*`` the best of each."""
        ranks = self.ranks
        rows = []
        for one, results in self.results.items():
            cells = [one]
            for name in self.measures:
                error = results.get(f"{name}_error", math.nan)
                cell = f"{results[name]:.3g}" + (f" ± {error:.2g}" if math.isfinite(error) else "")
                cells.append(cell + (" *" if ranks.get(name, [])[:1] == [one] else ""))
            rows.append(tuple(cells))
        heads = (
            f"{name} ({measure.better} is better)" if measure.better else name
            for name, measure in self.measures.items()
        )
        return Table(("attribution", *heads), tuple(rows))

    def __str__(self) -> str:
        table = self.table()
        lines = [table.columns, *table.rows]
        widths = [max(len(str(line[place])) for line in lines) for place in range(len(table.columns))]
        return "\n".join(
            "  ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def plot(self) -> Figure:
        """Draw the curves of all attributions: the most relevant features first, and the least relevant first."""
        with new_figure(7.2, 2.6) as figure:
            panels = figure.subplots(1, 2, sharey=True)
            for panel, key in zip(panels, _CURVES, strict=True):
                for name, results in self.results.items():
                    curve = results[key]
                    share = [place / (len(curve) - 1) for place in range(len(curve))]
                    panel.plot(share, curve.tolist(), ":" if name == RANDOM else "-", label=name)
                panel.set_xlabel("share of the features that are gone")
            panels[0].set_title("most relevant first")
            panels[1].set_title("least relevant first")
            panels[0].set_ylabel("score")
            panels[1].legend(frameon=False, fontsize=7)
            return figure


def compare(
    model: nn.Module,
    dataloader: Iterable[Any],
    attributions: Mapping[str, Attribution],
    *,
    regions: RegionsLike,
    perturbation: str | Perturbation,
    max_samples: int = 64,
    target: str | int = "label",
    unpack: Unpack | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Comparison:
    """Measure attributions on the same samples by the core measures, with a random map as the floor.

    All share one sweep: the random sets and the input without any feature are scored once for all of them.

    Args:
        model: The network, on the device to use; left as it was.
        dataloader: Gives batches.
        attributions: What is compared, by name.
        regions: The features; they must not overlap.
        perturbation: R.
        max_samples: How many samples, from the first one on.
        target: ``"label"``, the batch's class labels; ``"predicted"``; or a class index for all.
        unpack: Turns a batch into (inputs, target) or (inputs, target, sample ids).
        seed: Keys the random sets and the random map.
        progress: Show a progress bar.
        **options: Those of :class:`~lightning_xai.metrics.Faithfulness`.

    Raises:
        TypeError: If ``attributions`` is no dict of attributions by name.
        ValueError: If one is called ``"random"``, there is none, or an argument makes no sense.

    >>> import torch
    >>> from lightning_xai import Windows
    >>> from lightning_xai.perturbation import kinds
    >>> from lightning_xai.relevance import GradientXInput, Saliency
    >>> model = nn.Linear(8, 3)
    >>> data = [(torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1]))]
    >>> methods = {"saliency": Saliency(), "gradient × input": GradientXInput()}
    >>> how = {"regions": Windows(1), "perturbation": kinds.Constant(0.0), "score": "logit"}
    >>> found = compare(model, data, methods, **how, progress=False)
    >>> found.ranks["srg"]
    ['gradient × input', 'saliency']
    """
    if not isinstance(attributions, Mapping):
        raise TypeError(
            f"attributions must be a dict of attributions by name, e.g. {{'lrp': LRP()}}, got "
            f"{type(attributions).__name__}."
        )
    if not attributions:
        raise ValueError("attributions is empty: give at least one, e.g. {'lrp': LRP()}.")
    if RANDOM in attributions:
        raise ValueError(f"no attribution can be called {RANDOM!r}: that is the name of the floor.")
    metrics = {
        name: Faithfulness(attribution, regions, perturbation, seed=seed, **options)
        for name, attribution in {**attributions, RANDOM: RandomMap(seed)}.items()
    }
    how: dict[str, Any] = {"max_samples": max_samples, "target": target, "unpack": unpack, "progress": progress}
    results = explain(model, dataloader, metrics, **how)
    first = next(iter(metrics.values()))
    names = [*first.measures, "completeness_gap"]
    return Comparison(results, {name: first.results[name] for name in names})
