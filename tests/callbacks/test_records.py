"""What is written of every sample: classes where there are classes, values where there are values."""

import warnings

import pytest
import torch
from torch import nn

from lightning_xai import Windows, explain, load_explanations
from lightning_xai.callbacks.writer import ShardWriter
from lightning_xai.figures.samples import draw_samples
from lightning_xai.metrics import Importance, Relevance, TopSamples
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import GradientXInput

INPUTS = torch.arange(12.0).view(3, 4)


class Linear(nn.Module):
    """Column k is the sum of the inputs, k + 1 times."""

    def __init__(self, columns):
        super().__init__()
        self.net = nn.Linear(4, columns, bias=False)
        self.net.weight.data = torch.arange(1.0, columns + 1)[:, None].expand(-1, 4).clone()

    def forward(self, x):
        return self.net(x)


def records(folder, columns, labels, metrics=None, score="value", target="label", model=None):
    """What is written of the samples, the captions of their picture, and the warnings."""
    metrics = metrics or {"zero": Importance(Windows(2), kinds.Constant(0.0), score=score)}
    batch = INPUTS if labels is None else (INPUTS, labels)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        explain(model or Linear(columns), [batch], metrics, target=target, folder=folder, progress=False)
    found = load_explanations(folder / "explanations")
    captions = [axes.get_ylabel() for axes in draw_samples(found, {}).axes]
    return found, captions, [str(warning.message) for warning in said]


SUMS = INPUTS.sum(1)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
@pytest.mark.parametrize(
    "metrics",
    [
        None,
        {"map": Relevance(GradientXInput())},
        {"units": TopSamples("net", n=1)},
    ],
    ids=["importance", "relevance", "units"],
)
def test_a_regression_has_values(tmp_path, shape, metrics):
    labels = torch.tensor([12.5, 17.25, 23.75])
    found, captions, said = records(tmp_path, 1, labels.view(shape), metrics)
    torch.testing.assert_close((found["target"], found["label"]), (labels, labels))
    torch.testing.assert_close((found["prediction"], found["score"]), (SUMS, SUMS))
    assert captions[0] == "#0\ntarget 12.5\npredicted 6"
    assert not [message for message in said if "class" in message]


@pytest.mark.parametrize(
    ("labels", "target"), [(torch.tensor([3, 5, 9]), 0), (None, "label"), (["a", "b", "c"], "label")]
)
def test_counts_and_missing_labels_of_a_regression(tmp_path, labels, target):
    found, captions, said = records(tmp_path, 1, labels, target=target)
    known = isinstance(labels, torch.Tensor)
    assert (found["target"].isfinite().all(), "label" in found) == (known, known)
    assert captions[1] == ("#1\ntarget 5\npredicted 22" if known else "#1\npredicted 22")
    assert not [message for message in said if "class" in message]


def test_one_of_several_outputs(tmp_path):
    labels = torch.tensor([[1.0, 2.0, 3.5], [4.0, 5.0, 6.5], [7.0, 8.0, 9.5]])
    found, captions, said = records(tmp_path / "one", 3, labels, target=1)
    torch.testing.assert_close((found["target"], found["prediction"]), (labels[:, 1], 2 * SUMS))
    assert (found["output"].tolist(), captions[0], said) == ([1, 1, 1], "#0\noutput 1\ntarget 2\npredicted 12", [])
    found, _, said = records(tmp_path / "any", 3, labels)
    assert (found["output"].tolist(), found["target"].tolist()) == ([2, 2, 2], [3.5, 6.5, 9.5])
    assert said == ["the network has several outputs: the largest one is explained; target=0 explains the first."]


def test_classes_stay_classes(tmp_path):
    found, captions, _ = records(tmp_path / "label", 3, torch.tensor([2, 0, 2]), score="logit")
    assert [found[name].tolist() for name in ("target", "prediction", "label")] == [[2, 0, 2], [2, 2, 2], [2, 0, 2]]
    torch.testing.assert_close(found["score"], SUMS * torch.tensor([3.0, 1.0, 3.0]))
    assert captions[:2] == ["#0\n2", "#1\n0\nseen as 2"]
    # A model that ends in probabilities is read by its value, too.
    assert records(tmp_path / "value", 3, torch.tensor([2, 0, 2]))[0]["target"].tolist() == [2, 0, 2]
    found, captions, _ = records(tmp_path / "fixed", 3, torch.tensor([2, 0, 2]), target=1)
    assert (found["target"].tolist(), captions[0]) == ([1, 1, 1], "#0\nexplained class:\n1\nseen as 2")


class Segmentation(Linear):
    def forward(self, x):
        return torch.stack([x, -x], 1)


@pytest.mark.parametrize(
    ("model", "labels", "score"),
    [
        (Linear(3), torch.tensor([[0.0, 1.0, 1.0]] * 3), "sigmoid"),
        (Linear(3), torch.tensor([[0, 1, 1]] * 3), "sigmoid"),
        (Segmentation(2), torch.zeros(3, 4, 1).long(), "logit"),
    ],
)
def test_several_labels_and_segmentations_have_an_explained_class(tmp_path, model, labels, score):
    found, captions, said = records(tmp_path, 3, labels, score=score, model=model)
    assert found["target"].equal(found["prediction"])
    assert captions[0].startswith("#0\nexplained class:\n")
    assert ("label" in found) == (labels.ndim == 2)
    assert said == ["the batch has no class labels [N]: the predicted class is explained instead."]


def test_tensors_that_share_memory_are_written(tmp_path):
    values = torch.arange(6.0).view(3, 2)
    ShardWriter(tmp_path).write({"sample_id": torch.arange(3), "a": values, "b": values, "c": values[:, 0]})
    found = load_explanations(tmp_path)
    torch.testing.assert_close((found["a"], found["b"], found["c"]), (values, values, values[:, 0]))
