"""The report of a run, ``report.html``: one file that needs nothing else."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from latex2mathml.converter import convert
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional

from lightning_xai.app.pages import embedded_png, format_number, render_page
from lightning_xai.app.ranking import Ranking, page_view, read_comparisons
from lightning_xai.callbacks.writer import load_explanations, passes
from lightning_xai.figures.canvas import Pictures, input_pixels, map_limits, map_pixels, runs_of
from lightning_xai.figures.results import DRAWN
from lightning_xai.figures.samples import explains_labels
from lightning_xai.metrics.base import ExplanationMetric
from lightning_xai.metrics.comparison import Comparison, comparisons
from lightning_xai.results import Map, Number, Result, companions

_MOST_SAMPLES = 64
_MOST_ROWS = 20
_LONGEST_SIDE = 112  # of an image, in pixels
_MOST_POINTS = 400  # of a curve


def write_report(
    folder: Path, metrics: Mapping[str, ExplanationMetric], title: str, pictures: Pictures | None = None
) -> Path:
    """Write ``report.html`` about a run: its numbers, pictures, equations, samples and config, all in one file.

    Args:
        folder: The run's folder; ``results.json``, ``config.yaml``, ``figures/`` and ``explanations/`` are read.
        metrics: What the run computed, by name.
        title: The heading.
        pictures: Class names, and how inputs are turned back into what people look at.
    """
    numbers = json.loads((folder / "results.json").read_text())
    counts = sorted(
        {(result["samples"], result.get("skipped", 0)) for result in numbers.values() if "samples" in result}
    )
    samples = " and ".join(f"{count:,}" + (f" of {count + left:,}" if left else "") for count, left in counts)
    return render_page(
        folder / "report.html",
        title=title,
        subtitle=f"{samples} samples explained by {', '.join(metrics)}.",
        numbers=list(shown_numbers(numbers, metrics)),
        parts=[_part(folder, place, metrics, pictures or Pictures()) for place in latest(folder / "figures")],
        config=(folder / "config.yaml").read_text(),
    )


def shown_numbers(
    numbers: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, ExplanationMetric]
) -> Iterator[dict[str, Any]]:
    """Yield the numbers of a run that are listed: metric, key, number, and its declaration.

    A standard error stands with its number (``error``), and so does the count of what is undefined (``undefined``);
    measures by which several attributions are compared stand in the ranking, and what else they have in common with
    the first of them.

    Args:
        numbers: The content of ``results.json``.
        metrics: What the run computed, by name.
    """
    there: dict[str, dict[str, Any]] = {part: {} for name in numbers for part in name.split("/")}
    compared = comparisons(metrics, there)
    several = {first: each for first, each in compared.items() if len(each.results) > 1}
    ranked = {name: each.measures for each in several.values() for name in each.results}
    leader = {name: first for first, each in several.items() for name in each.results if name != first}
    for metric, values in numbers.items():
        results = results_of(metric, metrics)
        skipped = {*companions(results), *next((ranked[part] for part in metric.split("/") if part in ranked), ())}
        shared = numbers.get("/".join(leader.get(part, part) for part in metric.split("/")), {}) if leader else {}
        shared = {} if shared is values else shared
        for key, value in values.items():
            result = results.get(key)
            if key in shared and shared[key] == value:
                continue
            if key not in skipped and (not isinstance(result, Number) or result.shows(value)):
                beside = {name: values.get(getattr(result, name, None) or "") for name in ("error", "undefined")}
                yield {"metric": metric, "key": key, "value": value, "result": result, **beside}


def listed(folder: Path, metrics: Mapping[str, ExplanationMetric]) -> dict[str, list[dict[str, Any]]]:
    """Read the tables that a run wrote last: title and rows, by metric, and stage if there are several."""
    places = {place.relative_to(folder / "figures").as_posix(): place for place in latest(folder / "figures")}
    return {
        f"{name}, {stage}" if len(places) > 1 else name: _tables(place, name)
        for stage, place in places.items()
        for name in metrics
    }


def write_comparison(
    folder: Path,
    runs: Mapping[str, Path],
    rows: Mapping[str, str],
    rankings: Sequence[Ranking] = (),
    failed: Sequence[str] = (),
    errors: Mapping[str, str] | None = None,
) -> Path:
    """Write ``comparison.html`` about the runs of a multirun, with links to their reports.

    The pictures that lie in the folder, ``comparison.<metric>.png`` and ``ranking-<n>.png``, are part of it.

    Args:
        folder: The multirun's folder.
        runs: The folder of every run, by what is special about it.
        rows: What the results to compare are, by ``<metric>/<key>``.
        rankings: Attributions side by side.
        failed: The runs that have no results.
        errors: The standard errors of results, by ``<metric>/<key>``.
    """
    shown = [
        {
            "name": name,
            "report": (run / "report.html").relative_to(folder).as_posix(),
            "numbers": {
                row: format_number(numbers[row], numbers.get((errors or {}).get(row, "")))
                for numbers in [numbers_of(run)]
                for row in rows
                if row in numbers
            },
            "pictures": [
                embedded_png(path.read_bytes())
                for place in latest(run / "figures")
                for path in place.glob("samples.png")
            ],
        }
        for name, run in runs.items()
    ]
    path = folder / "comparison.html"
    pictures = [
        {"metric": picture.stem.partition(".")[2], "source": embedded_png(picture.read_bytes())}
        for picture in sorted(folder.glob("comparison.*.png"))
    ]
    ranked = []
    for number, ranking in enumerate(rankings):
        picture = folder / f"ranking-{number}.png"
        links = {name: (run / "report.html").relative_to(folder).as_posix() for name, run in ranking.pages.items()}
        ranked.append(
            {
                "title": ranking.title,
                "picture": embedded_png(picture.read_bytes()) if picture.exists() else "",
                "table": page_view(ranking.comparison, links),
            }
        )
    about = {"runs": shown, "rows": rows, "pictures": pictures, "rankings": ranked, "failed": failed}
    return render_page(path, title="Comparison", subtitle=f"{len(shown)} runs", **about)


def results_of(
    name: str, metrics: Mapping[str, ExplanationMetric] | Mapping[str, type[ExplanationMetric]]
) -> Mapping[str, Result]:
    """Find the declarations of a metric by the name of its numbers, of which stage and data loader may be part."""
    parts = name.split("/")
    return next((metrics[part].results for part in parts if part in metrics), {})


def metrics_of(runs: Iterable[Path]) -> dict[str, type[ExplanationMetric]]:
    """Find the classes of the metrics of some runs, by the names that their configs give them."""
    configs = [OmegaConf.load(run / "config.yaml") for run in runs]
    return {name: get_object(entry._target_) for config in configs for name, entry in config.metrics.items()}


def labels_of(rows: Iterable[str], runs: Iterable[Path]) -> dict[str, str]:
    """Title results with their units, by ``<metric>/<key>``.

    Those that are shown with another are left out, and so are counts of what is not as it should be, if all are 0.
    """
    runs = list(runs)
    numbers = [numbers_of(run) for run in runs]

    def shows(row: str, result: Result | None) -> bool:
        values = [found[row] for found in numbers if row in found]
        return not isinstance(result, Number) or any(result.shows(value) for value in values)

    return {
        row: f"{metric}: {results[key].label}" if key in results else row
        for row, metric, key, results in _declared_rows(rows, runs)
        if key not in companions(results) and shows(row, results.get(key))
    }


def errors_of(rows: Iterable[str], runs: Iterable[Path]) -> dict[str, str]:
    """Find the standard errors of results, both by ``<metric>/<key>``."""
    return {
        row: f"{metric}/{error}"
        for row, metric, key, results in _declared_rows(rows, runs)
        if (error := getattr(results.get(key), "error", None)) is not None
    }


def _declared_rows(rows: Iterable[str], runs: Iterable[Path]) -> Iterator[tuple[str, str, str, Mapping[str, Result]]]:
    """Yield every row with its metric, its key, and the declarations of the metric."""
    metrics = metrics_of(runs)
    for row in rows:
        metric, _, key = row.rpartition("/")
        yield row, metric, key, results_of(metric, metrics)


def numbers_of(run: Path) -> dict[str, float | None]:
    """Read the numbers of a run by ``<metric>/<key>``; None for what is not finite."""
    numbers = json.loads((run / "results.json").read_text())
    return {f"{metric}/{key}": value for metric, result in numbers.items() for key, value in result.items()}


def latest(figures: Path) -> list[Path]:
    """Find the folders with pictures or tables: of every stage the last pass."""
    shown = (".png", ".csv", ".json")
    return [
        folder
        for at in passes(figures).values()
        for folder in sorted({path.parent for path in [*at.values()][-1].rglob("*") if path.suffix in shown})
    ]


def _part(folder: Path, place: Path, metrics: Mapping[str, ExplanationMetric], pictures: Pictures) -> dict[str, Any]:
    """Describe a folder of pictures: of a stage, and of one monitor and data loader if there are several."""
    name = place.relative_to(folder / "figures").as_posix()
    maps = folder / "explanations" / name
    explained = load_explanations(maps) if any(maps.glob("*.safetensors")) else {"sample_id": torch.empty(0)}
    columns = _columns(explained, metrics)
    rows = range(min(len(explained["sample_id"]), _MOST_SAMPLES))
    samples = [_sample({key: tensor[row] for key, tensor in explained.items()}, columns, pictures) for row in rows]
    label = explained.get("label")
    compared = {name: found for name, found in read_comparisons(folder, place).items() if len(found.results) > 1}
    with_others = {one for name, found in compared.items() for one in found.results if one != name}
    values = "output" in explained  # of a regression
    outputs = values and bool(explained["output"].any())
    return {
        "name": name,
        "anchor": name.replace("/", "-"),
        "quantities": [
            _quantity(key, metric, place, compared.get(key), per_class=outputs or not values)
            for key, metric in metrics.items()
            if key not in with_others or (place / f"{key}.png").exists()
        ],
        "columns": columns,
        "samples": samples,
        "classes": [] if values else sorted({sample["target"] for sample in samples}),
        "kind": "number" if values else "text",
        "target": "target" if values or explains_labels(explained) else "explained class",
        "outputs": outputs,
        "judged": label is not None and label.ndim == 1 and not values,
        "excluded": len(explained["sample_id"]) - len(samples),
    }


def how_made(made: Mapping[str, Any]) -> str:
    """Say how maps were made: from which layer, or by which engine.

    >>> how_made({"engine": "incremental", "share": 0.437}), how_made({"layer": "layer4"})
    ('Made by incremental passes, with 44 % of the multiplications of dense ones.', 'Made from the layer layer4.')
    >>> how_made({"engine": "dense", "share": 0.081})
    'Made by passes that begin at the site, with 8 % of the multiplications of whole ones.'
    """
    if "layer" in made:
        return f"Made from the layer {made['layer']}."
    if "engine" not in made:
        return ""
    share = 100 * made["share"]
    if made["engine"] == "incremental":
        return f"Made by incremental passes, with {share:.0f} % of the multiplications of dense ones."
    if share < 100:
        return f"Made by passes that begin at the site, with {share:.0f} % of the multiplications of whole ones."
    return "Made by dense passes."


def _quantity(
    name: str, metric: ExplanationMetric, place: Path, compared: Comparison | None, *, per_class: bool
) -> dict[str, Any]:
    picture = place / f"{name}.png"
    return {
        "name": name,
        "title": name if compared is None else compared.title,
        "equation": convert(metric.formula, display="block") if metric.formula else "",
        "interpretation": metric.interpretation,
        "made": how_made(metric.made),
        "picture": embedded_png(picture.read_bytes()) if picture.exists() else "",
        "drawn": [
            result
            for result in metric.results.values()
            if isinstance(result, DRAWN) and (per_class or not (isinstance(result, Map) and result.axes))
        ],
        "ranking": None if compared is None else page_view(compared),
        "tables": _tables(place, name),
    }


def _tables(place: Path, name: str) -> list[dict[str, Any]]:
    return [_table(path) for path in sorted(place.glob("*.csv")) if path.stem.partition(".")[0] == name]


def _table(path: Path) -> dict[str, Any]:
    with path.open(newline="") as file:
        columns, *rows = csv.reader(file)
    title = path.stem.partition(".")[2].replace("_", " ") or path.stem
    excluded = max(len(rows) - _MOST_ROWS, 0)
    return {"title": title, "columns": columns, "rows": rows[:_MOST_ROWS], "excluded": excluded, "file": path.name}


def _columns(explained: Mapping[str, Tensor], metrics: Mapping[str, ExplanationMetric]) -> list[dict[str, Any]]:
    maps = {
        f"{name}/{tensor}": result for name, metric in metrics.items() for tensor, result in metric.sample_maps.items()
    }
    columns = []
    for key, result in maps.items():
        if key in explained:
            low, high = limits = map_limits(explained[key], result.signed)
            ramp = map_pixels(torch.linspace(low, high, 9).unsqueeze(0), limits)[0]
            columns.append(
                {
                    "key": key,
                    "title": result.title,
                    "limits": limits,
                    "ends": [float(f"{end:.2g}") for end in limits],
                    "colours": [] if explained[key].ndim == 2 else (255 * ramp).round().int().tolist(),
                }
            )
    return columns


def _sample(
    explained: Mapping[str, Tensor], columns: Sequence[Mapping[str, Any]], pictures: Pictures
) -> dict[str, Any]:
    number = int(explained["sample_id"])
    said = _said(explained, pictures)
    values = explained["input"].float()
    shown = (
        _curves(values.reshape(-1, values.shape[-1]), (float(values.min()), float(values.max())))
        if values.ndim <= 2
        else _image(input_pixels(explained["input"], pictures))
    )
    maps = []
    for column in columns:
        values, limits = explained[column["key"]].float(), column["limits"]
        drawn = _curves(values.unsqueeze(0), limits) if values.ndim == 1 else _image(map_pixels(values, limits))
        label = f"{column['title']} of sample {number}"
        maps.append(drawn | {"key": f"{float(values.abs().nanmean()):.9g}", "label": label})
    return {
        "id": number,
        **said,
        "input": shown | {"label": f"input: {said['target']}"},
        "maps": maps,
    }


def _said(explained: Mapping[str, Tensor], pictures: Pictures) -> dict[str, Any]:
    """Name the target and the prediction of a sample, and say whether the prediction is wrong."""
    both = {key: explained[key].item() for key in ("target", "prediction")}
    if "output" in explained:  # a regression
        words = {key: "unknown" if math.isnan(value) else format_number(value) for key, value in both.items()}
        return words | {"keys": [*both.values()], "output": int(explained["output"]), "wrong": False}
    label = explained.get("label")
    wrong = label is not None and label.ndim == 0 and label.item() != both["prediction"]
    words = {key: pictures.name(int(value)) for key, value in both.items()}
    return words | {"keys": [*words.values()], "wrong": wrong}


def _image(pixels: Tensor) -> dict[str, Any]:
    """Embed pixels [H, W, 3] from 0 to 1 as an image."""
    from matplotlib.image import imsave

    longest = max(pixels.shape[:2])
    if longest > _LONGEST_SIDE:
        scale = _LONGEST_SIDE / longest
        small = functional.interpolate(pixels.movedim(-1, 0)[None], scale_factor=scale, mode="area")
        pixels = small[0].movedim(0, -1)
    file = io.BytesIO()
    imsave(file, pixels.clamp(0, 1).numpy(), format="png")
    return {"source": embedded_png(file.getvalue())}


def _curves(curves: Tensor, limits: tuple[float, float]) -> dict[str, Any]:
    """Compute the lines of curves [K, F] between two limits, with gaps at what is not finite, in a box of 160 x 60."""
    low, high = limits
    if curves.shape[1] > _MOST_POINTS:
        curves = functional.adaptive_avg_pool1d(curves[None], _MOST_POINTS)[0]
    scale = 56 / ((high - low) or 1.0)
    heights = 58 - scale * (curves - low)
    points = torch.stack([torch.linspace(1, 159, curves.shape[1]).expand_as(heights), heights], -1)
    return {
        "zero": 58 + scale * low if low < 0 < high else None,
        "lines": [line[start:stop].tolist() for line in points for start, stop in runs_of(line[:, 1].isfinite())],
    }
