"""The report of a run, ``report.html``: one file that needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from jinja2 import Environment, PackageLoader, StrictUndefined
from latex2mathml.converter import convert
from markupsafe import escape
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional

from lightning_xai.callbacks.writer import load_explanations
from lightning_xai.figures.canvas import Pictures, input_pixels, map_limits, map_pixels
from lightning_xai.figures.results import DRAWN
from lightning_xai.metrics.base import ExplanationMetric
from lightning_xai.results import Result

_MOST_SAMPLES = 64
_MOST_ROWS = 20
_LONGEST_SIDE = 112


@dataclass(frozen=True)
class Part:
    """Holds one set of explained samples: of a stage, and of one monitor and data loader if there are several."""

    name: str
    anchor: str
    quantities: list[dict[str, Any]]
    columns: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    classes: list[str]
    excluded: int


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
    pictures = pictures or Pictures()
    parts = [_part(folder, place, metrics, pictures) for place in _latest(folder / "figures")]
    numbers = json.loads((folder / "results.json").read_text())
    counts = sorted({result["samples"] for result in numbers.values() if "samples" in result})
    samples = " and ".join(f"{count:,}" for count in counts)
    text = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            subtitle=f"{samples} samples explained by {', '.join(metrics)}.",
            numbers=[
                {"metric": metric, "key": key, "value": value, "result": results_of(metric, metrics).get(key)}
                for metric, found in numbers.items()
                for key, value in found.items()
            ],
            parts=parts,
            config=(folder / "config.yaml").read_text(),
        )
    )
    report = folder / "report.html"
    report.write_text(text, encoding="utf-8")
    return report


def listed(folder: Path, metrics: Mapping[str, ExplanationMetric]) -> dict[str, list[dict[str, Any]]]:
    """Read the tables that a run wrote last: title and rows, by metric, and stage if there are several."""
    places = _latest(folder / "figures")
    found = {}
    for place in places:
        stage = f", {place.relative_to(folder / 'figures').as_posix()}" if len(places) > 1 else ""
        for name in metrics:
            found[name + stage] = _tables(place, name)
    return found


def write_comparison(folder: Path, runs: Mapping[str, Path], rows: Mapping[str, str]) -> Path:
    """Write ``comparison.html`` about the runs of a multirun, with links to their reports.

    Args:
        folder: The multirun's folder.
        runs: The folder of every run, by what is special about it.
        rows: What the results to compare are, by ``<metric>/<key>``.
    """
    found = []
    for name, run in runs.items():
        places = _latest(run / "figures")
        shown = [path for place in places for path in sorted(place.glob("samples.png"))]
        found.append(
            {
                "name": name,
                "report": (run / "report.html").relative_to(folder).as_posix(),
                "numbers": numbers_of(run),
                "pictures": [{"data": _embedded(path), "alt": f"the first samples of {name}"} for path in shown],
            }
        )
    text = (
        _environment()
        .get_template("comparison.html.jinja")
        .render(title="Comparison", subtitle=f"{len(found)} runs", runs=found, rows=rows)
    )
    page = folder / "comparison.html"
    page.write_text(text, encoding="utf-8")
    return page


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
    """Title results with their units, by ``<metric>/<key>``."""
    metrics = metrics_of(runs)
    labels = {}
    for row in rows:
        metric, _, key = row.rpartition("/")
        result = results_of(metric, metrics).get(key)
        labels[row] = f"{metric}: {result.label}" if result else row
    return labels


def numbers_of(run: Path) -> dict[str, float | None]:
    """Read the numbers of a run by ``<metric>/<key>``; None for what is not finite."""
    numbers = json.loads((run / "results.json").read_text())
    return {f"{metric}/{key}": value for metric, result in numbers.items() for key, value in result.items()}


def format_number(number: float | None) -> str:
    """Format counts in full, and measures with four digits.

    >>> format_number(12345), format_number(0.123456), format_number(None)
    ('12,345', '0.1235', 'nan')
    """
    if number is None:
        return "nan"
    return f"{number:,}" if isinstance(number, int) else f"{number:.4g}"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lightning_xai.app"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["digits"] = format_number
    return environment


def _latest(figures: Path) -> list[Path]:
    """Find the folders with pictures or tables: of every stage the last epoch."""
    last: dict[str, tuple[int, Path]] = {}
    for place in sorted(figures.glob("*-epoch*")):
        stage, _, epoch = place.name.rpartition("-epoch")
        if stage not in last or int(epoch) > last[stage][0]:
            last[stage] = (int(epoch), place)
    shown = (".png", ".csv")
    return [
        folder
        for _, place in last.values()
        for folder in sorted({path.parent for path in place.rglob("*") if path.suffix in shown})
    ]


def _part(folder: Path, place: Path, metrics: Mapping[str, ExplanationMetric], pictures: Pictures) -> Part:
    inside = place.relative_to(folder / "figures")
    maps = folder / "explanations" / inside
    explained = load_explanations(maps) if any(maps.glob("*.safetensors")) else None
    columns = _columns(explained, metrics) if explained is not None else []
    samples = [] if explained is None else _samples(explained, columns, pictures)
    return Part(
        name=inside.as_posix(),
        anchor=inside.as_posix().replace("/", "-"),
        quantities=[_quantity(name, metric, place) for name, metric in metrics.items()],
        columns=columns,
        samples=samples,
        classes=sorted({sample["target"] for sample in samples}),
        excluded=0 if explained is None else len(explained["sample_id"]) - len(samples),
    )


def _quantity(name: str, metric: ExplanationMetric, place: Path) -> dict[str, Any]:
    drawn = {key: result for key, result in metric.results.items() if isinstance(result, DRAWN)}
    picture = place / f"{name}.png"
    return {
        "name": name,
        "equation": convert(metric.formula, display="block") if metric.formula else "",
        "interpretation": metric.interpretation,
        "picture": _embedded(picture) if picture.exists() else "",
        "alt": f"{name}: {', '.join(dict.fromkeys(result.title for result in drawn.values()))}",
        "drawn": drawn,
        "tables": _tables(place, name),
    }


def _tables(place: Path, name: str) -> list[dict[str, Any]]:
    return [_table(path) for path in sorted(place.glob("*.csv")) if path.stem.partition(".")[0] == name]


def _table(path: Path) -> dict[str, Any]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    title = path.stem.partition(".")[2].replace("_", " ") or path.stem
    return {
        "title": title,
        "rows": rows[: _MOST_ROWS + 1],
        "excluded": max(len(rows) - _MOST_ROWS - 1, 0),
        "file": path.name,
    }


def _columns(explained: Mapping[str, Tensor], metrics: Mapping[str, ExplanationMetric]) -> list[dict[str, Any]]:
    columns = []
    for name, metric in metrics.items():
        for tensor, result in metric.sample_maps.items():
            key = f"{name}/{tensor}"
            if key in explained:
                low, high = limits = map_limits(explained[key], result.signed)
                ends = {"low": format_number(float(f"{low:.2g}")), "high": format_number(float(f"{high:.2g}"))}
                flat = explained[key].ndim == 2
                columns.append(
                    {"key": key, "title": result.title, "unit": result.unit, "limits": limits, **ends}
                    | {"gradient": "" if flat else _gradient(limits)}
                )
    return columns


def _samples(
    explained: Mapping[str, Tensor], columns: Sequence[Mapping[str, Any]], pictures: Pictures
) -> list[dict[str, Any]]:
    found = []
    for row in range(min(len(explained["sample_id"]), _MOST_SAMPLES)):
        target, prediction = (pictures.name(int(explained[key][row])) for key in ("target", "prediction"))
        maps = []
        for column in columns:
            values = explained[column["key"]][row].float()
            strength = values.abs().nanmean()
            label = f"{column['title']} of sample {int(explained['sample_id'][row])}"
            maps.append({"key": f"{float(strength):.9g}", "picture": _map(values, column["limits"], label)})
        found.append(
            {
                "id": int(explained["sample_id"][row]),
                "target": target,
                "prediction": prediction,
                "wrong": target != prediction,
                "input": _input(explained["input"][row], pictures, f"input: {target}"),
                "maps": maps,
            }
        )
    return found


def _input(sample: Tensor, pictures: Pictures, label: str) -> str:
    if sample.ndim <= 2:
        curves = sample.float().reshape(-1, sample.shape[-1])
        return _curves(curves, (float(curves.min()), float(curves.max())), label)
    return _picture(input_pixels(sample, pictures), label)


def _map(values: Tensor, limits: tuple[float, float], label: str) -> str:
    if values.ndim == 1:
        return _curves(values.unsqueeze(0), limits, label)
    return _picture(map_pixels(values, limits), label)


def _picture(pixels: Tensor, label: str) -> str:
    """Embed pixels [H, W, 3] from 0 to 1 as an image."""
    from matplotlib.image import imsave

    longest = max(pixels.shape[:2])
    if longest > _LONGEST_SIDE:
        scale = _LONGEST_SIDE / longest
        small = functional.interpolate(pixels.movedim(-1, 0)[None], scale_factor=scale, mode="area")
        pixels = small[0].movedim(0, -1)
    file = io.BytesIO()
    imsave(file, pixels.clamp(0, 1).numpy(), format="png")
    return f'<img src="{_data(file.getvalue())}" alt="{escape(label)}" loading="lazy">'


def _curves(curves: Tensor, limits: tuple[float, float], label: str) -> str:
    """Draw curves [K, F] between two limits as a small SVG."""
    low, high = limits
    longest = 400
    if curves.shape[1] > longest:
        curves = functional.adaptive_avg_pool1d(curves[None], longest)[0]
    heights = 58 - 56 * (curves - low) / ((high - low) or 1.0)
    across = torch.linspace(1, 159, curves.shape[1])
    zero = f'<path d="M1 {58 + 56 * low / ((high - low) or 1.0):.1f}H159" stroke="#bbb"/>' if low < 0 < high else ""
    lines = "".join(
        f'<path d="{_path(across, height)}" fill="none" stroke="#1f5fa8" stroke-width="1.2"/>' for height in heights
    )
    return f'<svg viewBox="0 0 160 60" role="img" aria-label="{escape(label)}">{zero}{lines}</svg>'


def _path(across: Tensor, heights: Tensor) -> str:
    """Connect the points that are finite, with gaps in between."""
    steps, pen = [], "M"
    for x, y in zip(across.tolist(), heights.tolist(), strict=True):
        if y == y:
            steps.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(steps)


def _gradient(limits: tuple[float, float]) -> str:
    ramp = map_pixels(torch.linspace(*limits, 9).unsqueeze(0), limits)[0]
    stops = ", ".join("#" + "".join(f"{round(255 * float(part)):02x}" for part in colour) for colour in ramp)
    return f"linear-gradient(to right, {stops})"


def _embedded(path: Path) -> str:
    return _data(path.read_bytes())


def _data(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"
