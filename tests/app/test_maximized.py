"""Maximisation from the command line."""

import pytest
from hydra.utils import instantiate
from torch import nn

from lightning_xai import Pictures
from lightning_xai.app.maximized import Maximization
from lightning_xai.units.maximization import (
    L2,
    Ascent,
    ClassScore,
    Energy,
    Fourier,
    Jitter,
    Pixel,
    TotalVariation,
    Unit,
)


@pytest.mark.parametrize(
    ("name", "parametrization", "regularizers"),
    [("fourier", Fourier(), ()), ("pixel", Pixel(), (L2(0.01), TotalVariation(0.01)))],
)
def test_every_file_builds_what_it_names(name, parametrization, regularizers, composed):
    found = instantiate(composed(f"+maximization={name}", "seed=4").maximization)
    assert found.objective == ClassScore(list(range(10)))
    assert found.ascent.parametrization == parametrization
    assert found.ascent.regularizers == regularizers
    assert found.ascent.robustness == (Jitter(2),)
    assert found.ascent.seed == 4


@pytest.mark.parametrize(
    ("objective", "titles"),
    [
        (ClassScore([1, 0]), ["class two: ", "class one: "]),
        (Unit("0", 2), ["0, unit 2: "]),
        (Energy("0"), ["input 0: "]),
    ],
)
def test_a_picture_with_what_it_shows(objective, titles, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("lightning_xai.app.maximized.draw_maximized", lambda *given, **_: drawn.append(given))
    monkeypatch.setattr("lightning_xai.app.maximized.save", lambda *_: None)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 9, 2))
    Maximization(objective, Ascent(steps=2)).draw(model, (1, 5, 5), tmp_path, Pictures(class_names=["one", "two"]))
    ((inputs, found, _),) = drawn
    assert inputs.shape == (len(titles), 1, 5, 5)
    assert [title.rpartition(" ")[0] + " " for title in found] == titles


def test_batches_of_any_form_tell_the_shape(command, here):
    own = ["model._target_=my_module.Net", "data._target_=my_module.Strange", "trainer.max_epochs=1", "regions.size=4"]
    unpack = "monitor.unpack={_target_:my_module.unpack,_partial_:true}"
    asked = ["+maximization=pixel", "maximization.ascent.steps=2", "maximization.objective.target=[0,2]"]
    code, _, err = command(*own, unpack, *asked, "metrics=importance", "+trainer.enable_progress_bar=false")
    assert (code, err) == (0, "")
    assert (here / "run" / "figures" / "maximized.png").stat().st_size > 1000


def test_a_run_ends_with_a_picture(command, here):
    small = ["trainer.max_epochs=1", "+data.limit=100", "monitor.max_samples=2", "metrics=importance"]
    code, *_ = command(
        "+maximization=pixel", "maximization.ascent.steps=2", "maximization.objective.target=[3,5]", *small
    )
    assert code == 0
    assert (here / "run" / "figures" / "maximized.png").stat().st_size > 1000
