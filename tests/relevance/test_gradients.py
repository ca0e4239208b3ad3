"""Gradients of the score: closed forms, central differences, captum."""

import pytest
import torch
from captum.attr import InputXGradient
from captum.attr import Saliency as CaptumSaliency
from draws import close, draw, every_shape, module
from torch import distributed, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_xai.relevance import GradientXInput, Saliency, Sensitivity
from lightning_xai.relevance.gradients import GradientAttribution


def classifier(shape):
    cells = torch.Size(shape[1:]).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(cells, 8), nn.Tanh(), nn.Linear(8, 3)).double()


@every_shape
def test_gradients_of_a_linear_score(shape):
    weight, x = draw(3, *shape[1:]), draw(*shape)
    model, y = module(lambda z: z.flatten(1) @ weight.flatten(1).T + 2.0), torch.tensor([2, 0, 1])
    close(Saliency(absolute=False)(model, x, y), weight[y])
    close(Saliency()(model, x, y), weight[y].abs())
    close(Sensitivity()(model, x, y), weight[y] ** 2)
    close(GradientXInput()(model, x, y), x * weight[y])


@every_shape
@pytest.mark.parametrize("score", ["logit", "probability", "log_probability", "margin", "sigmoid", "value"])
def test_gradients_match_central_differences(shape, score):
    model, x, y = classifier(shape), draw(*shape), torch.tensor([0, 2, 1])
    ranks = model(x).detach().argsort(1, descending=True)
    rivals = torch.where(ranks[:, 0] == y, ranks[:, 1], ranks[:, 0])

    def read(z):
        own = z.gather(1, y[:, None])[:, 0]
        return {
            "logit": own,
            "value": own,
            "probability": own.exp() / z.exp().sum(1),
            "log_probability": own - z.exp().sum(1).log(),
            "margin": own - z.gather(1, rivals[:, None])[:, 0],
            "sigmoid": 1 / (1 + (-own).exp()),
        }[score]

    expected, step = torch.zeros_like(x), 1e-5
    for cell in range(x[0].numel()):
        moved = torch.zeros_like(x).flatten(1)
        moved[:, cell] = step
        moved = moved.view_as(x)
        with torch.no_grad():
            expected.flatten(1)[:, cell] = (read(model(x + moved)) - read(model(x - moved))) / (2 * step)
    close(Saliency(absolute=False, score=score)(model, x, y), expected, 1e-8)


@every_shape
def test_the_sum_of_sensitivity_is_the_squared_norm_of_the_gradient(shape):
    model, x = classifier(shape), draw(*shape)
    signed = Saliency(absolute=False)(model, x, 1)
    close(Sensitivity()(model, x, 1).flatten(1).sum(1), torch.linalg.vector_norm(signed.flatten(1), dim=1) ** 2)


def rectifier(bias):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=bias),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, bias=bias),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3, bias=bias),
    ).double()


def test_gradient_times_input_conserves_the_score_of_networks_without_biases():
    model, x, y = rectifier(bias=False), draw(4, 2, 8, 6), torch.tensor([0, 1, 2, 0])
    found = GradientXInput()(model, x, y)
    close(found.flatten(1).sum(1), model(x)[range(4), y].detach())


def test_biases_take_their_own_gradient_times_bias():
    model, x = rectifier(bias=True), draw(1, 2, 8, 6)
    found = GradientXInput()(model, x, 1)
    score = model(x)[0, 1]
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    slopes = torch.autograd.grad(score, biases)
    absorbed = sum((bias * slope).sum() for bias, slope in zip(biases, slopes, strict=True))
    close((found.sum() + absorbed).detach(), score.detach())


@every_shape
def test_gradients_match_captum(shape):
    model, x, y = classifier(shape), draw(*shape), torch.tensor([0, 2, 1])
    leaf = x.clone().requires_grad_()
    close(Saliency()(model, x, y), CaptumSaliency(model).attribute(leaf, target=y).detach())
    close(Saliency(absolute=False)(model, x, y), CaptumSaliency(model).attribute(leaf, target=y, abs=False).detach())
    close(GradientXInput()(model, x, y), InputXGradient(model).attribute(leaf, target=y).detach())


def test_segmentation_is_explained_where_the_class_is_predicted():
    model, x = nn.Conv2d(2, 3, 3, padding=1).double(), draw(3, 2, 4, 5)
    leaf = x.clone().requires_grad_()
    output = model(leaf)
    region = output.argmax(1) == 1
    assert region.flatten(1).any(1).all()
    score = sum((output[n, 1] * region[n]).sum() / region[n].sum() for n in range(3))
    close(Saliency(absolute=False)(model, x, 1), torch.autograd.grad(score, leaf)[0])


@pytest.mark.parametrize("method", [GradientAttribution])
def test_gradient_attribution_is_abstract(method):
    with pytest.raises(TypeError, match="abstract"):
        method()


def test_parameters_get_no_gradient():
    model, x = rectifier(bias=True), draw(2, 2, 8, 6)
    with FlopCounterMode(display=False) as forward:
        model(x)
    with FlopCounterMode(display=False) as isolated_eval:
        Saliency()(model, x, 0)
    with FlopCounterMode(display=False) as training:
        model(x.clone().requires_grad_())[:, 0].sum().backward()
    assert isolated_eval.get_total_flops() == 2 * forward.get_total_flops()
    assert training.get_total_flops() == 3 * forward.get_total_flops()
    model.zero_grad()
    Saliency()(model, x, 0)
    assert all(parameter.grad is None for parameter in model.parameters())


# Where there is no gradient


def constant(x):
    return torch.ones(len(x), 3, dtype=x.dtype, requires_grad=True) * 2


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x.detach().flatten(1),
        lambda x: torch.from_numpy(x.detach().numpy()).flatten(1),
        lambda x: x.flatten(1).argmax(1, keepdim=True).double(),
        lambda x: x.long().double().flatten(1),
        constant,
    ],
)
def test_causes_of_a_cut_gradient_are_named(forward):
    with pytest.raises(
        ValueError, match=r"no gradient path leads from the score back to the inputs. Likely causes: .*"
    ):
        Saliency()(module(forward), draw(2, 3), 0)


def test_integers_that_no_embedding_takes_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        Saliency()(nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), torch.tensor([[1, 2], [3, 4]]), 0)


def test_ids_are_explained_at_their_embedding_and_by_the_part_after_it():
    embedding, rest = nn.Embedding(5, 3).double(), nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).double()
    ids = torch.tensor([[1, 2], [3, 4]])
    expected = rest[1].weight[1].detach().view(1, 2, 3).expand(2, 2, 3)
    close(Saliency(absolute=False)(rest, embedding(ids).detach(), 1), expected)
    close(Saliency(absolute=False)(nn.Sequential(embedding, rest), ids, 1), expected)


def test_gradient_that_is_not_finite_warns():
    x = torch.tensor([[0.0, 4.0], [1.0, 9.0]])
    with pytest.warns(UserWarning, match="gradient with respect to the inputs is not finite in 1 of 2 samples"):
        found = Saliency()(module(lambda z: z.sqrt().sum(1, keepdim=True)), x, 0)
    assert found.isfinite().tolist() == [[False, True], [True, True]]
    close(found[1], torch.tensor([1 / 2, 1 / 6]))


# Wrappers


@pytest.fixture
def group(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("between", [False, True])
def test_explaining_during_distributed_training(group, between):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).double()
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = draw(2, 2, 4)
    for _ in range(3):
        loss = model(x).square().sum()
        if between:
            close(Saliency()(model, x, 0), net[1].weight[0].detach().abs().view(1, 2, 4).expand(2, 2, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.manual_seed(3)
    alone = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).double()
    x = draw(2, 2, 4)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        alone(x).square().sum().backward()
        optimizer.step()
    close(net[1].weight.detach(), alone[1].weight.detach())


def test_a_tensor_that_is_changed_in_place_is_refused_with_a_remedy():
    class Head(nn.Module):
        def forward(self, x):
            y = x.sigmoid()
            y[:, :1] = y[:, :1] * 2
            return y

    with pytest.raises(ValueError, match=r"changes a tensor in place .* y = y\.clone\(\)"):
        Saliency()(Head(), torch.rand(2, 3), 1)
