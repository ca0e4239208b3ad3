"""Batches and models of other forms than the usual."""

import warnings
from collections import OrderedDict

import pytest
import torch
from lightning.pytorch import LightningModule
from subjects import (
    FIRST,
    NUMBERS,
    REGIONS,
    SAMPLES,
    ZERO,
    Classifier,
    Stop,
    equal,
    expected,
    loader,
    metrics,
    only,
    quiet,
    samples,
)
from torch import nn

from lightning_xai import ExplanationMonitor, Segments, load_explanations
from lightning_xai.perturbation import importance, kinds

pytestmark = quiet


class Loose(Classifier):
    """Takes batches of any form, as it never looks at them."""

    def validation_step(self, batch, batch_idx):
        pass

    training_step = validation_step


def shaped(form):
    """A loader whose batches have another form."""
    return loader(collate_fn=lambda pairs: form(*(torch.stack(part) for part in zip(*pairs, strict=True))))


@pytest.mark.parametrize(
    ("form", "unpack"),
    [
        (lambda x, y: {"image": x, "label": y}, None),
        (lambda x, y: OrderedDict(pixel_values=x, labels=y, mask=None), None),
        (lambda x, y: [x, y.unsqueeze(1), "extra"], None),
        (lambda x, y: (x, y.int()), None),
        (lambda x, y: ([x, 3], y), lambda batch: (batch[0][0], batch[1])),
        (lambda x, y: {"a": {"b": x}, "c": y}, lambda batch: (batch["a"]["b"], batch["c"])),
    ],
)
def test_batches_of_other_forms(trainer, form, unpack):
    module, monitor = Loose(), ExplanationMonitor(metrics(), max_samples=FIRST, unpack=unpack)
    trainer(callbacks=[monitor]).validate(module, shaped(form), verbose=False)
    equal(monitor.results, expected(module))


def test_unpack_may_give_ids_of_its_own(trainer, tmp_path):
    module, noise, (inputs, labels) = Classifier(), kinds.GaussianNoise(), samples()
    monitor = ExplanationMonitor(only(perturbation=noise), max_samples=FIRST, unpack=lambda batch: batch)
    ids = 1000 - 7 * torch.arange(SAMPLES)
    trainer(callbacks=[monitor]).validate(module, loader(inputs, labels, ids), verbose=False)
    found = load_explanations(tmp_path / "explanations" / "validate-epoch0-step0")
    assert found["sample_id"].tolist() == ids[:FIRST].flip(0).tolist()
    ask = {"regions": REGIONS, "perturbation": noise, "sample_ids": ids[:FIRST]}
    equal(found["zero/local"], importance(module, inputs[:FIRST], labels[:FIRST], **ask).flip(0))


@pytest.mark.parametrize(
    "form",
    [
        lambda x, _: x,
        lambda x, _: [x],
        lambda x, _: {"x": x, "y": ["a"] * len(x)},
        lambda x, y: (x, y.float()),
        lambda x, y: (x, nn.functional.one_hot(y)),
    ],
)
def test_without_class_labels_the_prediction_is_explained(trainer, form):
    module, monitor = Loose(), ExplanationMonitor(metrics(), max_samples=FIRST)
    with pytest.warns(UserWarning, match="no class labels .*: the predicted class is explained instead") as said:
        trainer(callbacks=[monitor]).validate(module, shaped(form), verbose=False)
    assert len([warning for warning in said if "predicted" in str(warning.message)]) == 1
    equal(monitor.results, expected(module, target="predicted"))


@pytest.mark.parametrize(
    ("form", "unpack", "error", "message"),
    [
        (lambda x, y: {"foo": x, "bar": y}, None, TypeError, r"keys \['foo', 'bar'\].* say which .*unpack=lambda"),
        (lambda x, y: {"x": x, "image": y}, None, TypeError, r"in which the inputs cannot be told; .*unpack=lambda"),
        (lambda _x, _y: "text", None, TypeError, "the batch is a str"),
        (lambda x, y: [[x, x], y], None, TypeError, "inputs of the batch are a list, not a tensor; .*unpack=lambda"),
        (lambda x, y: [x, y], lambda batch: batch[0], TypeError, r"unpack must return \(inputs, target\) or"),
        (lambda x, y: [x, y], lambda batch: (*batch, [1]), ValueError, "returned 1 sample ids for 4 samples"),
        (lambda x, y: [x.long(), y], None, TypeError, r"inputs must be floating-point .* use inputs.float\(\)"),
        (lambda x, y: [x, y + 3], None, ValueError, r"target \[.*\] is out of range: .* has 3 classes"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_batches_that_cannot_be_explained(trainer, stage, form, unpack, error, message):
    module, run = Loose(), trainer(callbacks=[ExplanationMonitor(only(), unpack=unpack), Stop()])
    with pytest.raises(error, match=message):  # before training starts, if there is any
        run.fit(module, loader(), shaped(form)) if stage == "fit" else run.validate(module, shaped(form))


def broken(rows):
    inputs, labels = samples()
    inputs[rows] = inputs.new_tensor([torch.nan, torch.inf])[torch.tensor(rows) % 2].view(-1, 1, 1, 1)
    return inputs, labels


def test_samples_that_are_not_finite_are_left_out(trainer, tmp_path):
    module, monitor = Classifier(), ExplanationMonitor(metrics(), max_samples=FIRST + 3)
    rows = [0, 3, 5, 12]
    inputs, labels = broken(rows)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        trainer(callbacks=[monitor], max_epochs=2).fit(module, loader(), loader(inputs, labels))
    assert len([warning for warning in said if "are left out" in str(warning.message)]) == 1
    kept = [1, 2, 4, 6, 7, 8]
    assert load_explanations(tmp_path / "explanations" / "validate-epoch1-step12")["sample_id"].tolist() == kept
    for name, metric in metrics().items():
        metric.update(module, inputs[kept], labels[kept])
        result = monitor.results[name]
        assert (result["excluded"], result["samples"]) == (3, 6)
        equal({**result, "excluded": 0}, {key: v if v.ndim else v.item() for key, v in metric.compute().items()})


@pytest.mark.filterwarnings("ignore:samples with NaN or infinite inputs are left out")
@pytest.mark.usefixtures("pictures")
def test_data_without_any_finite_sample(trainer):
    module, monitor = Classifier(), ExplanationMonitor(metrics())
    trainer(callbacks=[monitor]).validate(module, loader(*broken(list(range(SAMPLES)))), verbose=False)
    for name in NUMBERS:
        assert (monitor.results[name]["samples"], monitor.results[name]["excluded"]) == (0, SAMPLES)
    assert monitor.results["zero"]["map"].isnan().all()
    assert monitor.results["zero"]["map"].shape == (6, 6)


def by_brightness(inputs):
    """More labels, the brighter the brightest cell."""
    return inputs.sum(1).mul(2).long().clamp(min=-1)


@pytest.mark.usefixtures("pictures")
def test_segments_of_every_sample(trainer, tmp_path):
    module, (inputs, labels) = Classifier(), samples()
    regions = Segments(by_brightness)
    assert len({regions.bind(batch).count for batch in inputs[:FIRST].split(2)}) > 1
    monitor = ExplanationMonitor(only(regions=regions), max_samples=FIRST)
    trainer(callbacks=[monitor]).validate(module, loader(batch_size=2), verbose=False)
    found = load_explanations(tmp_path / "explanations" / "validate-epoch0-step0")
    local = importance(module, inputs[:FIRST], labels[:FIRST], regions=regions, perturbation=ZERO)
    equal(found["zero/local"], local)
    equal(found["zero/map"], regions.bind(inputs[:FIRST]).paint(local))
    assert monitor.results["zero"]["nonfinite"] == 0


class Bare(Loose):
    """A module whose network is an attribute."""

    forward = LightningModule.forward


class Chatty(Classifier):
    """Logs in its forward, where the perturbed inputs come by too."""

    def forward(self, x):
        self.log("mean", x.mean(), on_epoch=True)
        self.log_dict({"max": x.max()})
        return self.net(x)

    def validation_step(self, batch, batch_idx):
        self(batch[0])


@pytest.mark.parametrize("name", ["net", "inner.net"])
def test_an_attribute_may_be_what_is_explained(trainer, name):
    module = Bare()
    module.inner = nn.Module()
    module.inner.net = module.net
    monitor = ExplanationMonitor(metrics(), max_samples=FIRST, model=name)
    trainer(callbacks=[monitor]).validate(module, loader(), verbose=False)
    equal(monitor.results, expected(module.net))


@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        (Bare, None, r"Bare has no forward of its own: .*ExplanationMonitor\(model=...\), one of net"),
        (Classifier, "ned", r"model 'ned' is unknown. Did you mean 'net'.* Known: net, net.0"),
        (Classifier, "net.01", r"model 'net.01' is unknown. Did you mean 'net.1' or 'net.0'"),
    ],
)
def test_a_network_that_is_not_there_is_named_before_training(trainer, stage, module, name, message):
    run = trainer(callbacks=[ExplanationMonitor(only(), model=name), Stop()])
    with pytest.raises(ValueError, match=message):
        run.fit(module(), loader(), loader()) if stage == "fit" else run.validate(module(), loader())


def test_what_a_module_logs_in_its_forward_stays_its_own(trainer):
    logged = []
    for callbacks in ([], [ExplanationMonitor(only(), max_samples=FIRST)]):
        run = trainer(callbacks=callbacks)
        run.validate(Chatty(), loader(), verbose=False)
        logged.append({key: value for key, value in run.callback_metrics.items() if not key.startswith("val/")})
    assert set(logged[0]) == {"mean", "max"}
    equal(logged[1], logged[0])
    assert len(run.callback_metrics) == 2 + len(NUMBERS["zero"])


class Keeps(Classifier):
    """Keeps a tensor of its first validation for later."""

    def forward(self, x):
        if not hasattr(self, "kept"):
            self.kept = torch.ones(1)
        self.net[0].weight.data_ptr()
        return self.net(x) + self.kept.mul_(1.0)

    def validation_step(self, batch, batch_idx):
        self(batch[0])


def test_a_tensor_of_inference_mode_is_explained(trainer):
    monitor = ExplanationMonitor(only(), max_samples=FIRST)
    with pytest.raises(RuntimeError, match=r"keeps a tensor .* inference mode; use Trainer\(inference_mode=False\)"):
        trainer(callbacks=[monitor]).validate(Keeps(), loader(), verbose=False)
    trainer(callbacks=[monitor], inference_mode=False).validate(Keeps(), loader(), verbose=False)
    assert monitor.results["zero"]["samples"] == FIRST
