"""Robustness: maps of moved inputs, against loops and a peer, and their edges."""

from dataclasses import dataclass, replace

import captum.attr
import captum.metrics
import pytest
import torch
from draws import close, draw
from torch import nn

from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.evaluation import avg_sensitivity, lipschitz, map_changes, max_sensitivity, ris, ros
from lightning_xai.relevance import GradientXInput, Saliency
from lightning_xai.scores import Box

MEASURES = (max_sensitivity, avg_sensitivity, lipschitz, ris, ros)
GRADIENT = Saliency(absolute=False)


def network():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@dataclass(frozen=True)
class Fixed(Attribution):
    """The same map whatever the input is."""

    def attribute(self, model, inputs, target, sample_ids, details):
        bound, score = self.clean(model, inputs, target)
        return Explanation.of(bound, score, torch.ones_like(inputs))


def test_a_map_that_ignores_the_input_does_not_move():
    for measure in MEASURES:
        close(measure(network(), draw(2, 6), 0, Fixed(), draws=2), [0.0, 0.0])


def test_no_step_is_no_move():
    for measure in MEASURES:
        close(measure(network(), draw(2, 6), 0, GRADIENT, draws=2, radius=0.0), [0.0, 0.0])


def test_contributions_of_a_linear_score_move_with_the_input():
    model, x, noise = nn.Linear(6, 1).double(), draw(3, 6), draw(3, 4, 6)
    weight = model.weight.detach()
    found = map_changes(model, x, 0, GradientXInput(), noise=noise)
    close(found.max_sensitivity, (weight * noise).norm(dim=2).amax(1) / (weight * x).norm(dim=1))
    close(found.avg_sensitivity, (weight * noise).norm(dim=2).mean(1) / (weight * x).norm(dim=1))
    assert (found.lipschitz <= weight.abs().max() + 1e-9).all()


def test_changes_are_those_of_a_loop():
    model, x, noise = network(), draw(2, 6), draw(2, 3, 6)
    noise = 3 * noise  # so that some predictions change
    found = map_changes(model, x, "predicted", GRADIENT, noise=noise)
    assert 0 < found.kept.sum() < 6
    target = model(x).argmax(1)
    for n in range(2):
        a = GRADIENT(model, x[n : n + 1], target[n : n + 1])[0]
        for t in range(3):
            moved = x[n : n + 1] + noise[n, t]
            change = GRADIENT(model, moved, target[n : n + 1])[0] - a
            close(found.change[n, t], change.norm())
            close(found.relative_change[n, t], (change / a).norm())
            close(found.relative_step[n, t], (noise[n, t] / x[n]).norm())
            close(found.output_step[n, t], (model(moved) - model(x[n : n + 1])).norm())
            assert found.kept[n, t] == (model(moved).argmax() == target[n])


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_max_sensitivity_is_captums_for_the_same_steps():
    model, x, noise = network(), draw(2, 6), 0.1 * draw(2, 4, 6)
    drawn = iter(noise.flatten(0, 1))
    peer = captum.metrics.sensitivity_max(
        captum.attr.Saliency(model).attribute,
        x,
        lambda inputs: inputs + torch.stack([next(drawn) for _ in inputs]),
        n_perturb_samples=4,
        target=1,
        abs=False,
    )
    close(max_sensitivity(model, x, 1, GRADIENT, noise=noise), peer)


def test_steps_that_change_the_prediction_are_left_out():
    model, x = nn.Linear(1, 2, bias=False).double(), torch.tensor([[2.0]]).double()
    model.weight.data[:] = torch.tensor([[1.0], [-1.0]])
    steps = torch.tensor([[[0.5], [-3.0]]]).double()
    found = map_changes(model, x, 0, GradientXInput(), noise=steps)
    assert found.kept.tolist() == [[True, False]]
    close(found.ris, found.relative_change[:, 0] / found.relative_step[:, 0])
    assert map_changes(model, x, 0, GradientXInput(), noise=steps[:, 1:]).ros.isnan().all()
    far = replace(found, relative_change=found.relative_change * torch.tensor([1.0, 99.0]).double())
    close(far.ris, found.ris)


def test_nothing_is_divided_by_less_than_a_millionth():
    model = nn.Linear(1, 2, bias=False).double()
    model.weight.data[:] = torch.tensor([[1.0], [-1.0]])
    small, from_zero = (
        map_changes(model, torch.tensor([[x]]).double(), 0, GradientXInput(), noise=torch.tensor([[[step]]]).double())
        for x, step in ((1.0, 1e-8), (0.0, 0.5))
    )
    close(torch.cat([small.ris, small.ros]), [1e-8 / 1e-6] * 2, 1e-7)
    close(torch.cat([from_zero.relative_change, from_zero.relative_step]), [[0.5 / 1e-6]] * 2)


def test_a_map_of_zeros_has_no_relative_change():
    model = nn.Linear(3, 1).double()
    model.weight.data.zero_()
    for measure in (max_sensitivity, avg_sensitivity):
        assert measure(model, draw(1, 3), 0, GRADIENT, draws=2).isnan().all()
    close(lipschitz(model, draw(1, 3), 0, GRADIENT, draws=2), [0.0])


def test_draws_do_not_depend_on_the_batch_and_stay_within_the_radius():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).double(), draw(3, 2, 4)
    how = {"radius": (0.1, 0.0), "draws": 3}
    found = map_changes(model, x, 0, GradientXInput(), sample_ids=[5, 2, 9], **how)
    alone = map_changes(model, x[1:2], 0, GradientXInput(), sample_ids=[2], **how)
    close(alone.change, found.change[1:2])
    assert found.step.max() <= 0.1 * 2
    assert len(found.step.unique()) == 9


@pytest.mark.parametrize(
    ("attribution", "options", "error", "words"),
    [
        (torch.ones(2, 6), {}, TypeError, "takes an attribution"),
        (GRADIENT, {"radius": -1.0}, ValueError, "radius must not be negative"),
        (GRADIENT, {"radius": (0.1, 0.2)}, ValueError, "one per channel"),
        (GRADIENT, {"draws": 0}, ValueError, "draws must be at least 1"),
        (GRADIENT, {"noise": torch.zeros(2, 6)}, ValueError, "noise must be"),
    ],
)
def test_what_does_not_fit_is_refused(attribution, options, error, words):
    with pytest.raises(error, match=words):
        max_sensitivity(network(), draw(2, 6), 0, attribution, **options)


class Pixels(nn.Module):
    """Classes per position that are squares, so that their gradients move."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 1).double()

    def forward(self, x):
        return self.conv(x).square()


def test_the_region_of_a_moved_input_is_that_of_the_clean_one():
    model, x, noise = Pixels(), draw(2, 2, 7), 3 * draw(2, 2, 2, 7)
    target = model(x).argmax(1)[:, 0]
    region = model(x).argmax(1) == target.unsqueeze(1)

    def explained(values):
        leaf = values.clone().requires_grad_()
        read = model(leaf).gather(1, target.view(2, 1, 1).expand(2, 1, 7))[:, 0]
        return torch.autograd.grad(((read * region).sum(1) / region.sum(1)).sum(), leaf)[0].flatten(1)

    found = map_changes(model, x, target, GRADIENT, noise=noise)
    assert not torch.equal(model(x + noise[:, 0]).argmax(1) == target.unsqueeze(1), region)
    for step in range(2):
        moved = x + noise[:, step]
        close(found.change[:, step], (explained(moved) - explained(x)).norm(dim=1))
        kept = model(moved).argmax(1).mode(1).values == model(x).argmax(1).mode(1).values
        assert torch.equal(found.kept[:, step], kept)


class Detector(nn.Module):
    """A box per channel whose score is above a threshold, the strongest first."""

    def forward(self, images):
        found = []
        for image in images:
            scores = image.mean((1, 2)).sigmoid()
            order = scores.argsort(descending=True)
            order = order[scores[order] > 0.5]
            boxes = torch.tensor([[0.0, 0, 2, 2], [5.0, 5, 9, 9]]).to(scores)[order]
            found.append({"boxes": boxes, "scores": scores[order], "labels": torch.ones(len(order), dtype=torch.long)})
        return found


def test_the_box_of_a_moved_input_is_that_of_the_clean_one():
    x = torch.tensor([0.6, 0.5]).double().view(1, 2, 1, 1)
    noise = torch.tensor([[0.0, 0.3], [0.0, -0.9]]).double().view(1, 2, 2, 1, 1)  # exchanged, and one is lost
    found = map_changes(Detector(), x, None, Saliency(absolute=False, score=Box(0)), noise=noise)
    close(found.change, [[0.0, 0.0]])
    assert found.size.item() > 0.1
    score = x[0, :, 0, 0].sigmoid()
    box = torch.tensor([5.0, 5, 9, 9, score[1], 1]).double()
    close(found.output_step[0, 1], (box - torch.tensor([0.0, 0, 0, 0, 0, -1]).double()).norm())
