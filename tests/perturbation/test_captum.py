"""Agreement with captum, on the questions that both can answer.

captum's ``Occlusion`` and ``FeatureAblation`` return the score's drop laid over the input, one value per cell and
channel. Their conventions, read from captum's source and confirmed here, are ours:

- sign: f(x) - f(perturbed), positive where the score falls;
- overlap: the mean over the windows that cover a cell, where stride < size;
- remainder: ceil((length - size) / stride) + 1 windows per axis, the last one cut, our ``remainder="partial"``.

Two differences. ``Occlusion`` computes in the input's precision but casts what it returns to single precision, so it
is compared to the rounding of that. It also refuses a stride larger than the window: there is nothing to compare.
"""

import pytest
import torch
from captum.attr import FeatureAblation, Occlusion

from lightning_xai.perturbation import PerturbationImportance, Segments, Windows, importance, kinds, synergy

TARGET = torch.tensor([2, 0, 1])
BASELINE = 0.3


@pytest.fixture
def x():
    return torch.randn(3, 2, 7, 8, dtype=torch.float64)


@pytest.fixture(params=["probability", "logit"])
def score(request):
    return request.param


@pytest.fixture
def forward(cnn, score):
    cnn.eval()
    return (lambda x: cnn(x).softmax(1)) if score == "probability" else cnn


def close(found, expected):
    rounding = 2 * torch.finfo(torch.float32).eps if expected.dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found, expected.detach().to(found), rtol=rounding, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "stride"),
    [
        ((1, 1), (1, 1)),
        ((7, 8), (7, 8)),
        ((2, 2), (2, 2)),  # the last row of windows is cut
        ((3, 3), (2, 2)),  # overlap, and a cut column
        ((4, 5), (2, 1)),
        ((4, 3), (3, 2)),
        ((5, 6), (4, 4)),
    ],
)
def test_occlusion(cnn, x, score, forward, size, stride):
    expected = Occlusion(forward).attribute(
        x, sliding_window_shapes=(2, *size), strides=(2, *stride), target=TARGET, baselines=BASELINE
    )
    found = PerturbationImportance(Windows(size, stride), kinds.Constant(BASELINE), score=score)(cnn, x, TARGET)
    close(found.expand_as(x), expected)


def test_occlusion_of_one_channel(cnn, x, score, forward):
    expected = Occlusion(forward).attribute(
        x, sliding_window_shapes=(1, 3, 3), strides=(1, 2, 2), target=TARGET, baselines=BASELINE
    )
    for channel in range(2):
        kind = kinds.Constant(BASELINE, channels=channel)
        found = PerturbationImportance(Windows(3, stride=2), kind, score=score)(cnn, x, TARGET)
        close(found, expected[:, [channel]])


def test_feature_ablation(cnn, x, score, forward):
    labels = torch.arange(56).view(7, 8) % 5
    expected = FeatureAblation(forward).attribute(x, feature_mask=labels, target=TARGET, baselines=BASELINE)
    found = PerturbationImportance(Segments(labels), kinds.Constant(BASELINE), score=score)(cnn, x, TARGET)
    close(found.expand_as(x), expected)


def test_two_segments_ablated_together(cnn, x, score, forward):
    """captum has no synergy, but a mask in which two features are one."""
    labels = torch.arange(56).view(7, 8) % 4
    joint = synergy(
        cnn, x, TARGET, regions=Segments(labels), perturbation=kinds.Constant(BASELINE), anchor=0, score=score
    )
    for j in (1, 2, 3):
        merged = torch.where(labels == j, 0, labels)
        expected = FeatureAblation(forward).attribute(x, feature_mask=merged, target=TARGET, baselines=BASELINE)
        close(joint[:, j], expected[:, 0, 0, 0])


def test_a_baseline_per_cell(cnn, x, score, forward):
    """captum's tensor baselines are our ``ClassInterchange``."""
    baseline = torch.randn(1, 2, 7, 8, dtype=torch.float64)
    labels = torch.arange(56).view(7, 8) % 5
    expected = FeatureAblation(forward).attribute(x, feature_mask=labels, target=TARGET, baselines=baseline)
    kind = kinds.ClassInterchange(baseline[0])
    found = importance(cnn, x, TARGET, regions=Segments(labels), perturbation=kind, score=score)
    close(Segments(labels).bind(x).paint(found).unsqueeze(1).expand_as(x), expected)
