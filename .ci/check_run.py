"""Checks that a default run has written what the README promises: ``python .ci/check_run.py FOLDER``."""

from __future__ import annotations

import base64
import csv
import html.parser
import json
import re
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lightning_xai import load_explanations

MAPS = {
    "importance": ("map", "map_relative"),
    "speed": ("map", "map_r_squared"),
    "synergy": ("joint", "interaction", "map_strongest"),
    "relevance": ("map", "by_feature", "gap", "score"),
    "reactivation": ("map",),
}
PICTURES = ("importance", "speed", "synergy", "relevance", "reactivation", "samples")
TABLES = ("reactivation.by_feature", "reactivation.by_feature_and_unit", "reactivation.by_unit")
EVERYWHERE_FINITE = ("importance/map", "speed/map", "relevance/map", "reactivation/map")
MOST_BYTES = 5 * 2**20
LOADED = ("src", "srcset", "href", "poster", "data", "action", "xlink:href")

Numbers = Mapping[str, Mapping[str, float]]


def check(right: object, wrong: str) -> None:
    """Stop with one line unless it is right."""
    if not right:
        raise SystemExit(f"check_run: {wrong}")


def near(found: float, expected: float) -> bool:
    """Whether two numbers agree but for single precision and the digits that were written."""
    return abs(found - expected) <= 1e-5 * max(abs(expected), 1e-3)


def present(path: Path) -> Path:
    """A file that must be there and hold something."""
    check(path.is_file() and path.stat().st_size > 0, f"{path} is missing or empty")
    return path


def check_maps(maps: Mapping[str, Tensor]) -> int:
    """The tensors of every sample; the number of samples."""
    wanted = [f"{metric}/{name}" for metric, names in MAPS.items() for name in names]
    for name in ("sample_id", "input", "target", "prediction", *wanted):
        check(name in maps, f"explanations/ hold no {name}")
    samples = len(maps["sample_id"])
    check(maps["sample_id"].tolist() == list(range(samples)), "sample ids are not the first of the data set")
    for name in EVERYWHERE_FINITE:
        check(maps[name].isfinite().all(), f"{name} is not finite everywhere")
        check(maps[name].shape[1:] == maps["input"].shape[2:], f"{name} is not shaped like the inputs")
        check(maps[name].any(), f"{name} is 0 everywhere")
    right = (maps["prediction"] == maps["target"]).float().mean()
    check(right > 0.85, "the network has not learned the digits")
    return samples


def check_numbers(numbers: Numbers, logged: Mapping[str, float], maps: Mapping[str, Tensor]) -> None:
    """The numbers of ``results.json`` against those of ``metrics.csv``, and against the maps."""
    samples, features = maps["importance/local"].shape
    for metric in MAPS:
        check(metric in numbers, f"results.json holds no {metric}")
        check(numbers[metric].get("samples") == samples, f"{metric} did not count every sample once")
        for key, value in numbers[metric].items():
            name = f"val/{metric}/{key}"
            check(value is not None, f"{name} is not finite")
            check(name in logged, f"metrics.csv holds no {name}")
            check(near(logged[name], value), f"{name} is {logged[name]} in metrics.csv and {value} in results.json")
    sums = maps["relevance/map"].double().flatten(1).sum(1)
    gap, score = maps["relevance/gap"].double(), maps["relevance/score"].double()
    rest = (score - sums - gap).abs().max()
    check(rest < 1e-5 * score.abs().max(), "relevance/gap is not the score less the map's sum")
    total = numbers["reactivation"].get("total", 0)
    check(total > 0, "results.json holds no reactivation/total over 0")
    expected: dict[str, float | Tensor] = {
        **{
            f"{metric}/mean_abs": maps[f"{metric}/map"].double().abs().mean()
            for metric in ("importance", "speed", "relevance")
        },
        "relevance/conservation_gap": gap.abs().sum() / score.abs().sum(),
        "relevance/input_share": sums.sum() / score.sum(),
        "reactivation/per_window": total / features,
    }
    for name, by_maps in expected.items():
        metric, key = name.split("/")
        check(key in numbers[metric], f"results.json holds no {name}")
        found = numbers[metric][key]
        check(near(found, float(by_maps)), f"{name} is {found} in results.json and {by_maps:.6g} by the maps")


def check_pictures(folder: Path) -> None:
    """Every picture is one, and large enough to read; every table has rows."""
    for name in PICTURES:
        header = present(folder / f"{name}.png").read_bytes()[:24]
        check(header[:4] == b"\x89PNG", f"{name}.png is not a picture")
        check(min(struct.unpack(">II", header[16:24])) > 200, f"{name}.png is too small to read")
    for name in TABLES:
        rows = present(folder / f"{name}.csv").read_text().splitlines()
        check(len(rows) > 1, f"{name}.csv has no rows")


class Page(html.parser.HTMLParser):
    """What a page loads, and its pictures."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.pictures: dict[str, str] = {}
        self.rows = 0
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take up a tag."""
        told = {name: value or "" for name, value in attrs}
        self.loaded += [told[name] for name in LOADED if name in told]
        self.rows += tag == "tr" and "data-target" in told
        if tag == "img":
            check(told.get("alt", "").strip(), "report.html has an <img> without alt")
            self.pictures[told.get("src", "")] = told["alt"]


def check_report(report: Path, figures: Path, samples: int) -> None:
    """One file that needs no other, with every picture and every sample."""
    size = present(report).stat().st_size
    check(size < MOST_BYTES, f"report.html has {size} bytes, more than {MOST_BYTES}")
    source = report.read_text(encoding="utf-8")
    page = Page(source)
    outside = [where for where in page.loaded if not where.startswith(("data:", "#"))]
    outside += re.findall(r"@import[^;]*|url\((?!['\"]?(?:data:|#))[^)]*\)", source)
    outside += re.findall(r"https?://[^\s\"'<]+", re.sub(r"xmlns(:\w+)?=\"[^\"]*\"", "", source))
    check(not outside, f"report.html is not self-contained: {', '.join(outside[:3])}")
    for name in PICTURES[:-1]:  # what `samples` shows, the report has a row for each
        data = base64.b64encode((figures / f"{name}.png").read_bytes()).decode()
        alt = page.pictures.get(f"data:image/png;base64,{data}", "")
        check(alt.startswith(name.partition(".")[0]), f"report.html does not show {name}.png, named in its alt")
    check(page.rows == samples, f"report.html shows {page.rows} of {samples} samples")


def main(run: Path) -> None:
    """Check one run."""
    stages = sorted(path.name for path in (run / "explanations").glob("*-epoch*"))
    check(len(stages) == 1, f"{run / 'explanations'} holds {len(stages)} stages, not one")
    figures = run / "figures" / stages[0]
    shards = list((run / "explanations" / stages[0]).glob("*.safetensors"))
    check(shards, f"{run / 'explanations' / stages[0]} holds no .safetensors")
    maps = load_explanations(shards[0].parent)
    samples = check_maps(maps)
    with present(run / "metrics.csv").open() as file:
        logged = {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}
    check_numbers(json.loads(present(run / "results.json").read_text()), logged, maps)
    check_pictures(figures)
    check_report(run / "report.html", figures, samples)
    references = re.findall(r"\$\{.*?\}", present(run / "config.yaml").read_text())
    check(set(references) == {"${folder}", "${hydra:runtime.output_dir}"}, f"config.yaml refers to {references}")
    present(run / "last.ckpt")
    print(f"default run: {samples} samples explained, everything written")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
