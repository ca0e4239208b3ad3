"""Attributions side by side: a ranking of a run, and one for each question of a multirun."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lightning_xai.app.ranking import page_view, rankings_of, read_comparisons, terminal_tables
from lightning_xai.metrics.comparison import Comparison
from lightning_xai.results import Number

SMALL = ["regions.size=4", "trainer.accelerator=cpu", "+trainer.enable_progress_bar=false", "trainer.max_epochs=1"]
OWN = ["model._target_=my_module.Net", "data._target_=my_module.Data", *SMALL]
MEASURES = {
    "srg": Number(
        "symmetric relevance gain", "0 chance", "Insertion less deletion.", better="higher", error="srg_error"
    ),
    "entropy": Number("entropy", "nats", "How widely a map is spread."),
}


def comparison(question="zeros", floor=0.0, **srg):
    results = {name: {"srg": value, "srg_error": 0.01, "entropy": 1.0} for name, value in srg.items()}
    results["random"] = {"srg": floor, "srg_error": 0.02, "entropy": 3.0}
    return Comparison(results, MEASURES, {}, {name: f"{name}()" for name in results}, ("random",), question)


@pytest.fixture
def a_job(tmp_path):
    """Makes the files of a run that a ranking reads."""

    def make(number, srg, stage="validate-epoch2-step9", made_by=None, **options):
        folder = tmp_path / str(number)
        found = comparison(faithfulness=srg, **options).to_dict()
        found["made_by"]["faithfulness"] = made_by or f"method {number}"
        place = folder / "figures" / stage
        place.mkdir(parents=True)
        (place / "faithfulness.measures.json").write_text(json.dumps(found))
        return folder

    return make


def test_runs_are_ranked_under_what_they_chose(a_job):
    runs = {a_job(number, srg): [f"attribution={name}", "seed=3"] for number, (name, srg) in enumerate(SCORES.items())}
    (ranking,) = rankings_of(runs)
    assert ranking.title == "faithfulness"
    assert ranking.comparison.ranks["srg"] == ["importance", "lrp", "saliency"]
    assert ranking.comparison.floors == ("random",)
    assert list(ranking.pages) == ["lrp", "saliency", "importance"]
    assert ranking.shows("faithfulness/srg_error", list(runs))
    assert not ranking.shows("faithfulness/samples", list(runs))
    assert not ranking.shows("faithfulness/srg", [*runs, Path("another")])


SCORES = {"lrp": 0.5, "saliency": 0.25, "importance": 0.75}


def test_every_question_has_a_ranking_of_its_own(a_job):
    runs = {}
    for question in ("zero", "blur"):
        for name in ("lrp", "saliency"):
            folder = a_job(f"{question}-{name}", SCORES[name], question=question, made_by=name)
            runs[folder] = [f"attribution={name}", f"perturbation={question}"]
    found = rankings_of(runs)
    assert [each.title for each in found] == ["faithfulness perturbation=zero", "faithfulness perturbation=blur"]
    assert [each.comparison.attributions for each in found] == [["lrp", "saliency"]] * 2


def test_runs_by_one_attribution_are_not_ranked(a_job):
    assert rankings_of({a_job(seed, 0.5, made_by="LRP()"): [f"seed={seed}"] for seed in range(2)}) == []
    assert rankings_of({a_job(9, 0.5): ["seed=9"], Path("nothing was measured"): []}) == []


def test_runs_that_chose_alike_are_numbered_and_other_floors_stay(a_job):
    runs = {a_job(0, 0.5): ["rule=a", "seed=1"], a_job(1, 0.25, floor=0.125): ["rule=b"], a_job(2, 1.0): ["rule=b"]}
    (ranking,) = rankings_of(runs)
    assert ranking.comparison.attributions == ["0: rule=a seed=1", "1: rule=b", "2: rule=b"]
    assert ranking.comparison.floors == ("random", "random, 1: rule=b")


def test_the_last_pass_of_a_stage_counts(a_job):
    folder = a_job(0, 0.5)
    a_job(0, 0.75, stage="validate-epoch10-step90", made_by="later")
    (ranking,) = rankings_of({folder: ["attribution=lrp"], a_job(1, 0.25): ["attribution=cam"]})
    assert ranking.comparison.made_by["lrp"] == "later"


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_tables_fit_the_terminal(width):
    several = {f"measure of {'more ' * number}": MEASURES["srg"] for number in range(9)}
    results = {name: dict.fromkeys(several, 0.123) | {"srg_error": 0.01} for name in ("integrated_gradients", "cam")}
    found = Comparison(results, several, {}, dict.fromkeys(results, "CAM()"))
    tables = terminal_tables(found, "ranking", width)
    assert sum(len(table.columns) - 1 for table in tables) == 9
    console = Console(width=width, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    text = console.export_text()
    assert text.count("0.123 *") == 18
    assert max(map(len, text.splitlines())) <= width


def test_a_page_shows_ranks_errors_and_the_floor():
    view = page_view(comparison(lrp=0.5, saliency=0.25), {"lrp": "0/report.html"})
    assert [measure["heading"] for measure in view["measures"]] == ["srg ↑", "entropy"]
    rows = {row["name"]: row for row in view["rows"]}
    assert rows["lrp"]["scores"][0] == {
        "value": "0.5",
        "error": "0.01",
        "undefined": 0,
        "rank": 1,
        "near_best": False,
    }
    assert (rows["lrp"]["link"], rows["saliency"]["link"]) == ("0/report.html", "")
    assert [row["floor"] for row in view["rows"]] == [False, False, True]


def test_a_run_ranks_the_attributions_that_it_measures(command, here):
    code, out, err = command(*OWN, "metrics=comparison", "metrics.faithfulness.attribution=[gradient_x_input,saliency]")
    assert (code, err) == (0, "")
    (place,) = (here / "run" / "figures").iterdir()
    (found,) = read_comparisons(here / "run", place).values()
    assert (found.attributions, found.floors) == (["gradient_x_input", "saliency"], ("random",))
    assert {path.name for path in place.glob("*.png")} == {"gradient_x_input.png"}
    assert found.samples.keys() == {"gradient_x_input", "saliency", "random"}
    for name, values in found.samples.items():
        assert values["srg"].mean() == pytest.approx(found.results[name]["srg"], rel=1e-6)
    assert "srg ↑" in out
    assert "Ranking: gradient_x_input and 2 others" in out
    assert out.count("symmetric relevance gain") == 0  # in the ranking alone
    assert out.count("│ samples") == 1  # as many for all
    page = (here / "run" / "report.html").read_text()
    assert page.count('class="ranking"') == 1
    assert 'id="validate-epoch0-step3-gradient_x_input"' in page
    assert "<h2>gradient_x_input and 2 others</h2>" in page
    assert 'id="validate-epoch0-step3-random"' not in page
    numbers = json.loads((here / "run" / "results.json").read_text())
    assert numbers["random"]["srg"] == pytest.approx(found.results["random"]["srg"], rel=1e-6)


def test_a_multirun_ends_in_a_ranking_and_names_what_failed(command, here, monkeypatch):
    monkeypatch.setattr("lightning_xai.callbacks.monitor.draw", lambda *_: {})  # the numbers count here
    attributions = "attribution=gradient_x_input,importance,grad_cam"  # the network has no layer for the last
    code, out, err = command("--multirun", *OWN, "metrics=faithfulness", attributions, "hydra.sweep.dir=sweep")
    assert code == 1
    assert err.endswith("lightning-xai: 1 of 3 runs failed: 2: attribution=grad_cam.\n")
    found = json.loads((here / "sweep" / "ranking.json").read_text())
    assert found["failed"] == ["2: attribution=grad_cam"]
    (ranking,) = found["rankings"]
    assert list(ranking["results"]) == ["gradient_x_input", "importance", "random"]
    for number, name in enumerate(("gradient_x_input", "importance")):
        numbers = json.loads((here / "sweep" / str(number) / "results.json").read_text())
        for key in ("srg", "srg_error"):
            assert ranking["results"][name][key] == pytest.approx(numbers["faithfulness"][key], rel=1e-6)
    assert sorted(ranking["ranks"]["srg"]) == ["gradient_x_input", "importance"]
    assert "Ranking: faithfulness" in out
    page = (here / "sweep" / "comparison.html").read_text()
    assert "Without results: 2: attribution=grad_cam." in page
    near = ranking["near_best"]
    assert near.keys() == ranking["ranks"].keys()
    assert ("cannot be told from the best" in page) == any(near.values())
    assert ("≈ cannot be told" in out) == any(near.values())
    assert '<a href="0/report.html">gradient_x_input</a>' in page
    assert (here / "sweep" / "ranking-0.png").is_file()


def test_a_multirun_without_such_measures_has_no_ranking(command, here, monkeypatch):
    monkeypatch.setattr("lightning_xai.callbacks.monitor.draw", lambda *_: {})
    code, out, err = command("--multirun", *OWN, "metrics=importance", "seed=1,2", "hydra.sweep.dir=sweep")
    assert (code, err) == (0, "")
    assert "Ranking" not in out
    assert not list((here / "sweep").glob("ranking*"))
