"""Maps of noisy inputs: moments in closed form, loops over the same noise, any attribution inside."""

import itertools

import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai.perturbation import PerturbationImportance, Windows, kinds
from lightning_xai.relevance import (
    GradCAM,
    GradientXInput,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
    SquareGrad,
    VarGrad,
)
from lightning_xai.scores import Box, Logit, Margin

IDS = [7, 3, 11]
NOISY = [SmoothGrad, SquareGrad, VarGrad]
every_average = pytest.mark.parametrize("average", NOISY)
INNER = {
    "saliency": Saliency(),
    "gradient": Saliency(absolute=False),
    "product": GradientXInput(score="probability"),
    "integrated": IntegratedGradients(steps=3),
    "cam": GradCAM(relu=False, upsample=None),
    "occlusion": PerturbationImportance(Windows(2), kinds.Constant()),
    "random occlusion": PerturbationImportance(Windows(2), kinds.GaussianNoise()),
    "noise of noise": SmoothGrad(draws=2, seed=5),
}
every_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER)


@pytest.fixture
def x():
    return draw(3, 2, 4, 6)


@pytest.fixture
def y():
    return torch.tensor([2, 0, 1])


class Recorder(nn.Module):
    """A square whose gradient is twice what it is given."""

    def forward(self, x):
        return x.flatten(1).square().sum(1, keepdim=True) / 2


def noise(x, ids=IDS, draws=4, **fields):
    """The noise itself: the gradient of |x|^2 / 2 at a noisy zero, draw by draw."""

    def maps(count):
        return SmoothGrad(Saliency(absolute=False), draws=count, **fields)(Recorder(), torch.zeros_like(x), 0, ids)

    totals = [maps(count) * count for count in range(1, draws + 1)]
    return torch.stack([totals[0], *(later - before for before, later in itertools.pairwise(totals))])


@every_inner
def test_averages_match_a_loop_over_the_same_noise(cnn, x, y, inner):
    drawn = noise(x, sigma=0.3, seed=2)
    maps = torch.stack([inner(cnn, x + one, y, IDS) for one in drawn])
    fields = {"sigma": 0.3, "seed": 2, "draws": 4}
    close(SmoothGrad(inner, **fields)(cnn, x, y, IDS), sum(maps) / 4)
    close(SquareGrad(inner, **fields)(cnn, x, y, IDS), sum(one * one for one in maps) / 4)
    close(VarGrad(inner, **fields)(cnn, x, y, IDS), maps.var(0, correction=0))


@every_inner
def test_without_noise_the_map_is_that_of_the_attribution(cnn, x, y, inner):
    found = inner(cnn, x, y, IDS)
    close(SmoothGrad(inner, sigma=0.0, draws=3)(cnn, x, y, IDS), found, 1e-13)
    close(SquareGrad(inner, sigma=0.0, draws=3)(cnn, x, y, IDS), found**2, 1e-13)
    close(VarGrad(inner, sigma=0.0, draws=3)(cnn, x, y, IDS), torch.zeros_like(found), 1e-13)


@every_average
@pytest.mark.parametrize("chunk_size", [1, 4, 7, 1000])
def test_map_ignores_chunk_size_and_batch(cnn, x, y, average, chunk_size):
    expected = average(sigma=0.3, draws=7)(cnn, x, y, IDS)
    chunked = average(sigma=0.3, draws=7, chunk_size=chunk_size)
    close(chunked(cnn, x, y, IDS), expected)
    for rows in ([2], [1, 0]):
        close(chunked(cnn, x[rows], y[rows], [IDS[row] for row in rows]), expected[rows])


def test_the_noise_is_normal_and_its_width_sigma():
    drawn = noise(torch.zeros(3, 1, 100, 100), draws=5, sigma=2.0)
    count = drawn.numel()
    assert float(drawn.mean()) == pytest.approx(0, abs=5 * 2 / count**0.5)
    assert float(drawn.std()) == pytest.approx(2, abs=5 * 2 / (2 * count) ** 0.5)
    assert float((drawn.abs() < 2).double().mean()) == pytest.approx(0.6827, abs=5 * (0.68 * 0.32 / count) ** 0.5)


def test_the_noise_depends_on_the_seed_the_id_and_the_draw():
    drawn = noise(torch.zeros(3, 1, 5), ids=[4, 9, 4])
    close(drawn[:, 0], drawn[:, 2], 1e-6)
    assert not torch.allclose(drawn[:, 0], drawn[:, 1])
    assert not torch.allclose(drawn[0], drawn[1])
    assert not torch.allclose(drawn, noise(torch.zeros(3, 1, 5), ids=[4, 9, 4], seed=1))


def test_relative_noise_is_in_units_of_the_samples_range(x):
    ranges = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    one, other = (
        SmoothGrad(Saliency(absolute=False), draws=3, relative=relative)(Recorder(), x, 0, IDS) - x
        for relative in (False, True)
    )
    close(other, one * ranges.view(3, 1, 1, 1))


def test_the_variance_of_gradients_of_a_quadratic():
    # The gradient of |x|^2 / 2 is x itself: E = x, E of the square = x^2 + sigma^2, Var = sigma^2.
    x = draw(1, 3, 20, 20)
    fields = {"sigma": 0.5, "draws": 200, "chunk_size": 200}
    close(SmoothGrad(**fields)(Recorder(), x, 0), x, 5 * 0.5 / 14)
    close(VarGrad(**fields)(Recorder(), x, 0), torch.full_like(x, 0.25), 6 * 0.25 * (2 / 200) ** 0.5)
    mean = SquareGrad(**fields)(Recorder(), x, 0) - x**2
    assert float(mean.mean()) == pytest.approx(0.25, abs=5 * 1.0 / (200 * x.numel()) ** 0.5)


def test_the_variance_keeps_its_digits_beside_a_large_mean():
    x = torch.full((1, 1, 50), 1e4)
    found = VarGrad(Saliency(absolute=False), sigma=1.0, draws=200)(Recorder(), x, 0)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.1)


def test_the_target_is_that_of_the_clean_input():
    model = nn.Linear(4, 3).double()
    x = 0.01 * draw(5, 4)
    predicted = model(x).argmax(1)
    found = SmoothGrad(sigma=10.0, draws=3)(model, x, "predicted")
    close(found, model.weight.detach()[predicted])


def test_score_and_size_are_those_of_the_attribution(cnn, x):
    noisy = SmoothGrad(GradCAM(upsample=None, layer="3", score="margin"))
    assert noisy.score == noisy.attribution.score
    assert noisy(cnn, x, 0).shape == (3, 1, 2, 2)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"attribution": "saliency"}, TypeError, "attribution must be an Attribution, got str"),
        ({"attribution": Saliency}, TypeError, "attribution must be an Attribution, got ABCMeta"),
        ({"sigma": -0.1}, ValueError, "sigma must not be negative, got -0.1"),
        ({"sigma": float("nan")}, ValueError, "sigma of .* must be a number, got nan"),
        ({"draws": 0}, ValueError, "draws must be at least 1, got 0"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
    ],
)
@every_average
def test_invalid_fields_are_refused(average, fields, error, message):
    with pytest.raises(error, match=message):
        average(**fields)


def test_the_layer_of_a_class_activation_map_is_chosen_once():
    chosen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(1, 2, 1), nn.Linear(2, 2)

        def forward(self, x):
            chosen.append(len(x))
            return self.head(self.conv(x).mean(2))

    model, x = Net().double(), draw(3, 1, 5)
    SmoothGrad(GradCAM(), draws=4, chunk_size=3)(model, x, 1)
    assert chosen == [3, 2, 3, 3, 3, 3]  # the clean score, the choice, and the draws


class Detector(nn.Module):
    """Two boxes whose scores are linear in the input; the one with the larger score comes first."""

    def forward(self, images):
        found = []
        for image in images:
            scores = torch.stack([image[0].mean(), image[1].mean()]).sigmoid()
            boxes = torch.tensor([[0.0, 0, 2, 2], [5.0, 5, 9, 9]]).to(scores)
            order = scores.argsort(descending=True)
            labels = torch.tensor([1, 1])
            found.append({"boxes": boxes[order], "scores": scores[order], "labels": labels[order]})
        return found


def test_a_box_stays_that_of_the_clean_input():
    x = torch.full((1, 2, 1, 1), 1.0, dtype=torch.double)
    x[0, 1] -= 1e-3  # noise exchanges the order of the boxes
    found = SmoothGrad(Saliency(absolute=False, score=Box(0)), sigma=0.5, draws=8)(Detector(), x)
    assert found[0, 0].item() > 0.1
    assert found[0, 1].item() == 0


def test_a_runner_up_and_a_region_stay_those_of_the_clean_input():
    model = nn.Conv1d(2, 3, 1).double()
    x = draw(2, 2, 6)
    for score in (Margin(), Logit()):
        bound = score.bind(model(x), "predicted", samples=2)

        def held(noisy, bound=bound):
            leaf = noisy.clone().requires_grad_()
            return torch.autograd.grad(bound(model(leaf)).sum(), leaf)[0]

        drawn = noise(x, ids=[0, 1], sigma=2.0, seed=1)
        method = SmoothGrad(Saliency(absolute=False, score=score), sigma=2.0, draws=4, seed=1)
        close(method(model, x, "predicted"), sum(held(x + one) for one in drawn) / 4)


def test_a_target_is_bound_to_one_score_and_its_samples(cnn, x, y):
    bound = Margin().bind(cnn(x), y, samples=3)
    close(Saliency(score="margin")(cnn, x, bound), Saliency(score="margin")(cnn, x, y))
    with pytest.raises(ValueError, match=r"bound to the score Margin\(.*\), which is not Logit"):
        Saliency()(cnn, x, bound)
    with pytest.raises(ValueError, match="the target is bound to 3 samples, there are 2"):
        Saliency(score="margin")(cnn, x[:2], bound)
