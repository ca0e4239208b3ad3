"""What is drawn and written of the results of a data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_xai._files import write_text
from lightning_xai.callbacks.collector import Collector, Results
from lightning_xai.callbacks.writer import load_explanations
from lightning_xai.figures.canvas import Pictures
from lightning_xai.figures.results import DRAWN, draw_results
from lightning_xai.figures.samples import draw_samples
from lightning_xai.metrics.comparison import Comparison, comparisons
from lightning_xai.results import Curve, declared

MEASURES = ".measures.json"  # what files of comparisons are called, after the first metric


def draw(collector: Collector, results: Results, pictures: Pictures | None) -> Iterator[tuple[str, Any]]:
    """Draw the pictures of a data set by name: one per metric, and ``samples`` with the maps of the first samples.

    Metrics that ask the same of several attributions share the picture of the first, of curves over each other.
    """
    contain = collector.failures.contain
    first: dict[str, str] = {}  # of the comparison that a metric belongs to
    compared: dict[str, Comparison] = {}
    with contain("the comparison of attributions"):
        compared = comparisons(collector.metrics, results)
        first = {name: one for one, comparison in compared.items() for name in comparison.results}
    for name, found in results.items():
        metric = collector.metrics[name]
        with contain(f"the picture of {name}"):
            drawn = [result for result in declared(metric.results, found).values() if isinstance(result, DRAWN)]
            if name in first and drawn and all(isinstance(result, Curve) for result in drawn):
                if first[name] == name:
                    yield name, compared[name].plot()
            elif drawn:
                yield name, draw_results(metric.results, found, name, pictures, labels=metric.axis_labels)
    with contain("the picture of the samples"):
        columns = {
            f"{name}/{key}": shown for name in results for key, shown in collector.metrics[name].sample_maps.items()
        }
        folder = collector.folder
        if columns and folder is not None and any(folder.glob("*.safetensors")):
            yield "samples", draw_samples(load_explanations(folder), columns, pictures)


def write_tables(collector: Collector, results: Results, folder: Path) -> None:
    """Write the tables of a data set as ``<metric>.<what is listed>.csv``, and measures as ``<metric>.measures.json``.

    Those of metrics that ask the same of several attributions stand together under the name of the first.
    """
    for name, found in results.items():
        with collector.failures.contain(f"the tables of {name}"):
            for what, table in collector.metrics[name].tables(found).items():
                table.to_csv(folder / f"{name}.{what}.csv")
    with collector.failures.contain("the comparison of attributions"):
        for name, comparison in comparisons(collector.metrics, results).items():
            text = json.dumps(comparison.to_dict(), indent=2, allow_nan=False)
            write_text(folder / f"{name}{MEASURES}", f"{text}\n")
