"""The report of a run: everything in one file, whatever the data look like."""

import html.parser
import json
import re
from types import SimpleNamespace

import pytest
import torch

from lightning_xai import Pictures, Windows, explain
from lightning_xai.app.report import write_comparison, write_report
from lightning_xai.metrics import Importance, Synergy
from lightning_xai.perturbation import kinds


class Page(html.parser.HTMLParser):
    """The tags of a page, checked to be closed in order, and its text."""

    VOID = ("meta", "img", "input", "path", "br")

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def a_run(folder, shape, stages=("validate-epoch2",), names=("a", "b", "c"), save_maps=True):
    """The files of a run over 7 samples of a shape, and what the report is told."""
    torch.manual_seed(0)
    cells = torch.Size(shape).numel()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(cells, 3)).eval()
    data = [(torch.randn(7, *shape), torch.tensor([0, 1, 2, 0, 1, 2, 0]))]
    metrics = {
        "importance": Importance(Windows(2), kinds.Constant(0.0)),
        "pairs": Synergy(Windows(2), kinds.Constant(0.0)),
    }
    pictures = Pictures(class_names=names)
    for stage in stages:
        place = folder / "once"
        found = explain(model, data, metrics, folder=place, pictures=pictures, progress=False)
        for part in ("figures", "explanations"):
            (folder / part).mkdir(exist_ok=True)
            if part == "figures" or save_maps:
                (place / part).rename(folder / part / stage)
    numbers = {
        name: {key: value for key, value in result.items() if not isinstance(value, torch.Tensor)}
        for name, result in found.items()
    }
    (folder / "results.json").write_text(json.dumps(numbers))
    (folder / "config.yaml").write_text("seed: 1\nscore: <b>probability</b>\n")
    report = write_report(folder, metrics, "What it looked at", pictures)
    return SimpleNamespace(folder=folder, numbers=numbers, source=report.read_text(encoding="utf-8"))


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 6), (2, 5), (6,), (1, 2, 4, 4)], ids=str)
def test_everything_is_in_the_file(tmp_path, shape):
    run = a_run(tmp_path, shape)
    page = Page(run.source)
    assert not re.search(r"""(src|href)=["'](?!data:image/png;base64,|#)""", run.source)
    rows = [attributes for attributes in page.all("tr") if "data-target" in attributes]
    assert [row["data-target"] for row in rows] == ["a", "b", "c", "a", "b", "c", "a"]
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("aria-label") for attributes in page.all("svg"))
    assert len(page.all("math")) == 2
    for result in run.numbers.values():
        for key, value in result.items():
            assert f"{key} {value if isinstance(value, int) else f'{value:.4g}'}" in page.text
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link["href"][1:] for link in page.all("a")} <= anchors


def test_words_of_the_run_are_not_markup(tmp_path):
    run = a_run(tmp_path, (1, 4, 4), names=('<i>"a"', "b&c", "c"))
    page = Page(run.source)
    assert not page.all("i")
    assert not page.all("b")
    assert '<i>"a"' in page.text
    assert "<b>probability</b>" in page.text


def test_the_last_epoch_of_every_stage_is_shown(tmp_path):
    text = Page(a_run(tmp_path, (6,), ("validate-epoch2", "validate-epoch10", "test-epoch3")).source).text
    assert "validate-epoch10" in text
    assert "test-epoch3" in text
    assert "validate-epoch2" not in text


def test_without_maps_there_are_no_samples(tmp_path):
    page = Page(a_run(tmp_path, (1, 4, 4), save_maps=False).source)
    assert not [attributes for attributes in page.all("tr") if "data-target" in attributes]
    assert len(page.all("img")) == 2


def test_a_comparison_links_the_reports_and_holds_the_pictures(tmp_path):
    runs = {name: tmp_path / name for name in ("0: zero", "1: blur & <mean>")}
    numbers = {}
    for name, folder in runs.items():
        folder.mkdir()
        numbers[name] = a_run(folder, (1, 4, 4)).numbers
    page = Page(write_comparison(tmp_path, runs, ["importance/gini", "pairs/samples", "none/there"]).read_text())
    assert [link["href"] for link in page.all("a")] == ["0: zero/report.html", "1: blur & <mean>/report.html"]
    assert f"importance/gini {numbers['0: zero']['importance']['gini']:.4g}" in page.text
    assert len(page.all("img")) == 2
