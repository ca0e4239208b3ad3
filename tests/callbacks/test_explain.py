"""Explaining without a Trainer."""

import warnings

import pytest
import torch
from subjects import SAMPLES, Classifier, loader, samples
from torch import nn

from lightning_xai import Pictures, Segments, Windows, explain, load_explanations
from lightning_xai.callbacks.writer import ShardWriter
from lightning_xai.metrics import Importance, Speed, Synergy
from lightning_xai.perturbation import importance, kinds, speed, synergy

REGIONS, NOISE, FADE = Windows(3), kinds.GaussianNoise(), [kinds.Negative(0.2), kinds.Negative(0.4)]


def metrics():
    return {"noise": Importance(REGIONS, NOISE), "speed": Speed(REGIONS, FADE), "pairs": Synergy(REGIONS, NOISE)}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, check_dtype=False, equal_nan=True)


def quietly(*args, **options):
    return explain(*args, progress=False, **options)


class Loader:
    """Batches that remember which of them were asked for."""

    def __init__(self, batches):
        self.batches, self.asked = list(batches), 0

    def __iter__(self):
        for batch in self.batches:
            self.asked += 1
            yield batch


@pytest.mark.parametrize("count", [1, 6, SAMPLES, 50])
def test_explain_is_the_mean_of_the_functions(count):
    module, (inputs, labels) = Classifier().train(), samples()
    found = quietly(module, loader(), metrics(), max_samples=count)
    inputs, labels = inputs[:count], labels[:count]
    paint = REGIONS.bind(inputs).paint
    ask = {"regions": REGIONS, "perturbation": NOISE}
    close(found["noise"]["map"], paint(importance(module, inputs, labels, **ask)).mean(0))
    close(found["pairs"]["joint"], synergy(module, inputs, labels, **ask).mean(0))
    fit = speed(module, inputs, labels, regions=REGIONS, perturbations=FADE)
    close(found["speed"]["map"], paint(fit.slope).mean(0))
    close(found["speed"]["map_r_squared"], paint(fit.r_squared).mean(0))
    for result in found.values():
        assert result["samples"] == min(count, SAMPLES)
        assert all(isinstance(value, int | float) or value.device.type == "cpu" for value in result.values())
    assert module.net[0].training


def test_no_more_batches_are_asked_for_than_needed():
    data = Loader(loader())
    quietly(Classifier(), data, metrics(), max_samples=8)
    assert data.asked == 2
    quietly(Classifier(), data, metrics(), max_samples=9)
    assert data.asked == 5


def test_explain_resets_metrics():
    module, some = Classifier(), metrics()
    first = quietly(module, loader(), some, max_samples=6)
    close(quietly(module, loader(), some, max_samples=6), first)


@pytest.mark.usefixtures("pictures")
def test_explain_writes_to_the_folder(tmp_path):
    module, (inputs, labels) = Classifier(), samples()
    other = ShardWriter(tmp_path / "explanations" / "validate-epoch0-step0")
    other.write({"sample_id": torch.arange(3)})
    for count in (SAMPLES, 6):  # the second run replaces the first
        quietly(module, loader(), metrics(), max_samples=count, folder=tmp_path, pictures=Pictures(samples=2))
    found = load_explanations(tmp_path / "explanations")
    close(found["sample_id"], torch.arange(6))
    close(found["input"], inputs[:6])
    ask = {"regions": REGIONS, "perturbation": NOISE}
    close(found["noise/local"], importance(module, inputs[:6], labels[:6], **ask))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        *(f"{name}.png" for name in (*metrics(), "samples"))
    }
    close(load_explanations(other.folder)["sample_id"], torch.arange(3))  # not ours, left alone


@pytest.mark.parametrize("folder", ["explanations", "elsewhere"])
def test_explanations_that_are_not_there(tmp_path, folder):
    place = ShardWriter(tmp_path / "explanations" / "validate-epoch0-step0")
    place.write({"sample_id": torch.arange(3)})
    hint = rf"There are some in {place.folder}" if folder == "explanations" else r"elsewhere\.$"
    with pytest.raises(FileNotFoundError, match=hint):
        load_explanations(tmp_path / folder)


@pytest.mark.parametrize(
    "form", [tuple, list, lambda pair: {"x": pair[0], "y": pair[1]}], ids=["tuple", "list", "dict"]
)
def test_forms_of_batches(form):
    batches, module = [form(batch) for batch in loader()], Classifier()
    close(quietly(module, batches, metrics()), quietly(module, loader(), metrics()))
    swapped = [(y, {"deep": x}) for x, y in loader()]
    own = quietly(module, swapped, metrics(), unpack=lambda batch: (batch[1]["deep"], batch[0]))
    close(own, quietly(module, loader(), metrics()))


def test_samples_that_are_not_finite():
    module, (inputs, labels) = Classifier(), samples()
    inputs[[1, 4]] = torch.nan
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = quietly(
            module, loader(inputs, labels, batch_size=3), {"noise": Importance(REGIONS, NOISE)}, max_samples=6
        )
    assert len(said) == 1
    kept = torch.tensor([0, 2, 3, 5])
    local = importance(module, inputs[kept], labels[kept], regions=REGIONS, perturbation=NOISE, sample_ids=kept)
    close(found["noise"]["map"], REGIONS.bind(inputs).paint(local).mean(0))
    assert (found["noise"]["samples"], found["noise"]["excluded"]) == (4, 2)


@pytest.mark.parametrize("target", ["predicted", 1])
def test_target_may_be_labels_predictions_or_one_class(target):
    module, (inputs, _) = Classifier(), samples()
    found = quietly(module, [inputs], {"noise": Importance(REGIONS, NOISE)}, target=target)
    local = importance(module, inputs, target, regions=REGIONS, perturbation=NOISE)
    close(found["noise"]["map"], REGIONS.bind(inputs).paint(local).mean(0))


@pytest.mark.parametrize(("options", "shown"), [({}, True), ({"progress": False}, False)])
def test_progress_bar_counts_perturbed_inputs(capsys, options, shown):
    explain(Classifier(), loader(), {"noise": Importance(REGIONS, NOISE)}, max_samples=6, **options)
    error = capsys.readouterr().err
    assert ("Explaining" in error) == shown
    assert not shown or "24.0/24.0" in error  # six samples, four windows


def test_progress_counts_a_shared_sweep_once(capsys):
    metrics = {f"in {size}": Importance(REGIONS, NOISE, chunk_size=size) for size in (2, 5, None)}
    explain(Classifier(), loader(), metrics, max_samples=6)
    assert "24.0/24.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataloader": []}, ValueError, "dataloader gave no batch"),
        ({"dataloader": [3]}, TypeError, "the batch is a int, .*unpack=lambda"),
        ({"metrics": {}}, ValueError, "metrics is empty"),
        ({"metrics": Importance(REGIONS, NOISE)}, TypeError, "metrics must be a dict by name"),
        ({"metrics": {"a": nn.Identity()}}, TypeError, r"metrics\['a'\] must be one of lightning_xai.metrics"),
        ({"max_samples": 0}, ValueError, "max_samples must be at least 1, got 0"),
        ({"target": "predict"}, ValueError, "target must be 'label', 'predicted' or a class index, got 'predict'"),
        ({"target": 3}, ValueError, r"target \[3\] is out of range"),
        ({"model": nn.Identity().forward}, TypeError, "model must be a torch.nn.Module, got method"),
    ],
)
def test_bad_arguments(arguments, error, message):
    usual = {"model": Classifier(), "dataloader": loader(), "metrics": metrics()}
    with pytest.raises(error, match=message):
        quietly(**{**usual, **arguments})


@pytest.mark.filterwarnings("ignore:samples with NaN or infinite inputs are left out")
def test_regions_never_see_a_sample_that_is_left_out():
    def segments(inputs):
        assert inputs.isfinite().all()
        return (inputs[:, 0] > 0).long()

    inputs, labels = samples()
    inputs[0, 0, 2] = torch.nan
    found = explain(Classifier(), loader(inputs, labels), {"own": Importance(Segments(segments), kinds.Constant(0.0))})
    assert (found["own"]["samples"], found["own"]["excluded"]) == (SAMPLES - 1, 1)


@pytest.mark.parametrize("count", [3, 9])
def test_labels_of_another_length_are_refused(count):
    inputs, _ = samples(5)
    with pytest.raises(ValueError, match=rf"one class index per sample, shape \[5\], got \[{count}\]"):
        quietly(Classifier(), [(inputs, torch.zeros(count, dtype=torch.long))], metrics())
