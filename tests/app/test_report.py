"""The report of a run: everything in one file, whatever the data look like."""

import base64
import html.parser
import re
from importlib import import_module

import pytest

from lightning_xai._files import write_text
from lightning_xai.app.report import write_comparison
from lightning_xai.metrics import Importance, Synergy


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


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 6), (2, 5), (6,), (1, 2, 4, 4)], ids=str)
def test_everything_is_in_the_file(a_run, shape):
    run = a_run(shape)
    page = Page(run.source)
    assert not re.search(r"""(src|href)=["'](?!data:image/png;base64,|#)""", run.source)
    rows = [attributes for attributes in page.all("tr") if "data-target" in attributes]
    assert [row["data-target"] for row in rows] == ["a", "b", "c", "a", "b", "c", "a"]
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("aria-label") for attributes in page.all("svg"))
    assert len(page.all("math")) == 2
    for metric, result in run.numbers.items():
        for key, value in result.items():
            label = {"importance": Importance, "pairs": Synergy}[metric].results[key].label
            shown = f"{label} {value if isinstance(value, int) else f'{value:.4g}'}" in page.text
            assert shown == (key not in ("nonfinite", "excluded", "skipped"))  # these are 0
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link["href"][1:] for link in page.all("a")} <= anchors


@pytest.fixture
def a_sketch(a_run, tmp_path, monkeypatch):
    """Makes reports whose pictures are empty files, which takes no time."""
    module = import_module("lightning_xai.callbacks.explain")
    monkeypatch.setattr(module, "draw", lambda *_: [("importance", None)])
    monkeypatch.setattr(module, "save", lambda _, path: write_text(path, ""))
    runs = iter(range(9))
    return lambda **options: a_run((6,), folder=tmp_path / str(next(runs)), **options).source


def headings(page):
    """The columns of the samples, and whether there is a filter for wrong predictions."""
    titles = re.findall(
        r'<th scope="col"[^>]*>(?:<button type="button">)?([^<]*)', page.partition('class="samples"')[2]
    )
    return titles[:5], 'name="wrong"' in page, 'name="target"' in page


def test_a_regression_shows_values(a_sketch):
    labels = (12.5, 17.25, 23.75, -31.5, 0.0, 1e-5, 123456.0)
    page = a_sketch(outputs=1, labels=labels, score="value")
    assert headings(page) == (["sample", "input", "target", "prediction", "importance LI"], False, False)
    rows = [attributes["data-target"] for attributes in Page(page).all("tr") if "data-target" in attributes]
    assert rows == ["12.5", "17.25", "23.75", "-31.5", "0", "1e-05", "1.235e+05"]
    assert "class" not in Page(page).text
    run = a_sketch(outputs=2, labels=[labels[:2]] * 7, score="value", target=1)
    assert headings(run)[0] == ["sample", "input", "target", "prediction", "explained output"]


@pytest.mark.filterwarnings("ignore:the batch has no class labels")
def test_a_class_that_is_no_label_is_called_explained(a_sketch):
    several = a_sketch(labels=[(0.0, 1.0, 1.0)] * 7, score="sigmoid")
    assert headings(several) == (["sample", "input", "explained class", "prediction", "importance LI"], False, True)
    assert headings(a_sketch(target=1)) == (headings(several)[0], True, True)  # the labels are known
    assert headings(a_sketch()) == (["sample", "input", "target", "prediction", "importance LI"], True, True)


@pytest.mark.filterwarnings("ignore:the time to explain is up")
def test_what_time_was_left_for_is_said(a_sketch, monkeypatch):
    monkeypatch.setattr(import_module("lightning_xai.callbacks.budget"), "BLOCK", 3)
    assert "3 of 7 samples explained by" in Page(a_sketch(max_seconds=1e-9)).text


def test_words_of_the_run_are_not_markup(a_run):
    run = a_run((1, 4, 4), names=('<i>"a"', "b&c", "c"))
    page = Page(run.source)
    assert not page.all("i")
    assert not page.all("b")
    assert '<i>"a"' in page.text
    assert "<b>probability</b>" in page.text


def test_the_last_epoch_of_every_stage_is_shown(a_run):
    text = Page(
        a_run((6,), stages=("validate-epoch9-step80", "validate-epoch9-step90", "test-epoch3-step0")).source
    ).text
    assert "validate-epoch9-step90" in text
    assert "test-epoch3-step0" in text
    assert "validate-epoch9-step80" not in text


def test_without_maps_there_are_no_samples(a_run):
    page = Page(a_run((1, 4, 4), save_maps=False).source)
    assert not [attributes for attributes in page.all("tr") if "data-target" in attributes]
    assert len(page.all("img")) == 2


def test_a_comparison_links_the_reports_and_holds_the_pictures(a_run, tmp_path):
    runs = {name: tmp_path / name for name in ("0: zero", "1: blur & <mean>")}
    numbers = {}
    for name, folder in runs.items():
        folder.mkdir()
        numbers[name] = a_run((1, 4, 4), folder=folder).numbers
    (tmp_path / "comparison.importance.png").write_bytes(b"maps side by side")
    page = Page(
        write_comparison(
            tmp_path, runs, {"importance/gini": "the label", "pairs/samples": "s", "none/there": "n"}
        ).read_text()
    )
    assert [link["href"] for link in page.all("a")] == ["0: zero/report.html", "1: blur & <mean>/report.html"]
    assert page.all("img").pop(0)["src"].endswith(base64.b64encode(b"maps side by side").decode())
    assert f"the label {numbers['0: zero']['importance']['gini']:.4g}" in page.text
    assert len(page.all("img")) == 3


def test_how_maps_were_made_is_said(a_sketch):
    assert Page(a_sketch(engine="dense")).text.count("Made by dense passes.") == 2
