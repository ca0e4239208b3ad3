"""The one form of an explanation, and importance in that form."""

import copy
import dataclasses
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.perturbation import PerturbationImportance, Segments, Windows, importance, kinds
from lightning_xai.relevance import (
    LRP,
    DeepTaylor,
    ExcitationBackprop,
    GradCAM,
    GuidedBackprop,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
)
from lightning_xai.scores import Margin, Probability
from lightning_xai.units import receptive_field


@dataclass(frozen=True)
class Ids(Attribution):
    """Every cell is its sample's id; one channel, or a shape that does not fit."""

    shape: tuple[int, ...] | None = None

    def attribute(self, model, inputs, target, sample_ids, details):
        bound, score = self.clean(model, inputs, target)
        ids = torch.tensor(sample_ids).view(-1, 1, *[1] * (inputs.ndim - 2))
        found = ids * torch.ones_like(inputs if inputs.ndim == 2 else inputs[:, :1])
        return Explanation.of(bound, score, found if self.shape is None else found.new_zeros(self.shape))


@pytest.mark.parametrize("given", [None, [7, 3], torch.tensor([7, 3])])
def test_sample_ids_reach_the_method(given):
    found = Ids()(nn.Identity(), torch.ones(2, 3, 4), 0, sample_ids=given)
    assert found.shape == (2, 1, 4)
    assert found[:, 0, 0].tolist() == ([0, 1] if given is None else [7, 3])


@pytest.mark.parametrize(
    ("inputs", "ids", "error", "message"),
    [
        (torch.ones(2, 3, 4), [1], ValueError, "sample_ids must be one per sample: got 1 for 2 samples"),
        (torch.ones(2, 3, 4).long(), None, TypeError, "inputs must be floating-point numbers, got torch.int64"),
        (torch.ones(2), None, ValueError, r"inputs must be \[N, C, \*S\]"),
        (torch.ones(2, 3) * 1j, None, TypeError, "got torch.complex64; give the parts as channels"),
        (torch.ones(2, 3, 4), torch.tensor([0.2, 0.9]), TypeError, "sample_ids must be integers, one per sample"),
        (torch.full((2, 3), torch.nan), None, ValueError, "inputs hold NaN"),
    ],
)
def test_invalid_inputs_are_refused(inputs, ids, error, message):
    with pytest.raises(error, match=message):
        Ids()(nn.Identity(), inputs, 0, sample_ids=ids)


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 3, 4), (2, 4), (2, 1, 4, 1)])
def test_map_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"Ids made a map .* for inputs \[2, 3, 4\]; it must be shaped like them"):
        Ids(shape)(nn.Identity(), torch.ones(2, 3, 4), 0)


def test_map_of_a_table_must_have_its_columns():
    with pytest.raises(ValueError, match=r"Ids made a map \[2, 7\] for inputs \[2, 3\]"):
        Ids((2, 7))(nn.Identity(), torch.ones(2, 3), 0)


@pytest.mark.parametrize(
    ("shape", "regions"),
    [
        ((3, 6), Windows(2)),
        ((3, 2, 7), Windows(3, stride=2)),
        ((3, 2, 4, 5), Windows((2, 3), scope=((1, 4), (0, 5)))),
        ((3, 2, 2, 2), Segments([[0, 0], [-1, 1]])),
    ],
)
def test_perturbation_importance_paints_importance_over_the_cells(shape, regions):
    x, target, ids = torch.randn(shape).double(), torch.tensor([0, 2, 1]), [5, 1, 9]
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3)).double()
    kind = kinds.GaussianNoise(seed=2)
    found = PerturbationImportance(regions, kind, score="margin")(model, x, target, ids)
    local = importance(model, x, target, regions=regions, perturbation=kind, score="margin", sample_ids=ids)
    painted = regions.bind(x).paint(local)
    assert found.shape == (shape if x.ndim == 2 else (3, 1, *shape[2:]))
    torch.testing.assert_close(found.view_as(painted), painted, equal_nan=True)


def test_perturbation_importance_compares_hashes_and_pickles():
    this = PerturbationImportance(Windows(2), kinds.Blur(), score="margin")
    assert this == PerturbationImportance(Windows(2), kinds.Blur(), score=Margin())
    assert this != PerturbationImportance(Windows(2), kinds.Blur())
    assert PerturbationImportance(Windows(2), kinds.Blur()).score == Probability()
    assert pickle.loads(pickle.dumps(this)) == this
    assert {this: 1}[this] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        this.score = "logit"
    with pytest.raises(ValueError, match=r"score 'margins' is unknown. Did you mean 'margin'"):
        PerturbationImportance(Windows(2), kinds.Blur(), score="margins")


class Careless(Ids):
    def attribute(self, model, inputs, target, sample_ids, details):
        return inputs


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (
            lambda: Careless().explain(nn.Identity(), torch.ones(2, 3), 0),
            TypeError,
            "Careless.attribute must return an Explanation, got Tensor",
        ),
        (
            lambda: LRP().explain(nn.Linear(3, 2), torch.ones(1, 3), 0, details=["legder"]),
            ValueError,
            "a detail of LRP 'legder' is unknown. Did you mean 'ledger'",
        ),
        (lambda: Saliency(absolute=1), TypeError, "absolute of Saliency must be True or False, got 1"),
        (lambda: SmoothGrad(draws=True), TypeError, "draws of SmoothGrad must be an integer, got True"),
        (
            lambda: IntegratedGradients(chunk_size="8"),
            TypeError,
            "chunk_size of Integrated.* must be an integer, got '8'",
        ),
        (lambda: PerturbationImportance(2, "blur", chunk_size=0), ValueError, "chunk_size must be at least 1, got 0"),
        (lambda: PerturbationImportance(2, "blur", engine="fast"), ValueError, "engine 'fast' is unknown"),
    ],
)
def test_invalid_attributions_and_details_are_refused(ask, error, message):
    with pytest.raises(error, match=message):
        ask()


@pytest.mark.parametrize("make", [Saliency, GuidedBackprop, IntegratedGradients, DeepTaylor, ExcitationBackprop])
def test_tuning_fields_are_keyword_only(make):
    with pytest.raises(TypeError, match="positional argument"):
        make("probability")


def test_importance_may_compare_perturbed_outputs_with_the_clean_one():
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    own = PerturbationImportance(2, "constant", score="comb_classes")
    local = importance(model, x, 0, regions=2, perturbation="constant", score="comb_classes")
    torch.testing.assert_close(own(model, x, 0), local.repeat_interleave(2, 1))
    assert (own.explain(model, x, 0).score == 0).all()


def test_chunk_size_of_importance_limits_its_passes():
    model, x, rows = nn.Linear(8, 3), torch.randn(2, 8), []
    model.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    expected = PerturbationImportance(2, "constant")(model, x, 0)
    rows.clear()
    torch.testing.assert_close(PerturbationImportance(2, "constant", chunk_size=3)(model, x, 0), expected)
    assert max(rows) <= 3


def test_layer_may_be_the_module_itself():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 2))
    x, named, own = torch.randn(2, 1, 9), GradCAM(layer="1"), GradCAM(layer=model[1])
    torch.testing.assert_close(own(model, x, 0), named(model, x, 0))
    torch.testing.assert_close(own(nn.DataParallel(model), x, 0), named(model, x, 0))
    torch.testing.assert_close(GradCAM(layer="module.1")(nn.DataParallel(model), x, 0), named(model, x, 0))
    assert own == GradCAM(layer=model[1]) != GradCAM(layer=model[0])
    assert {own: 1}[copy.deepcopy(own)] == 1
    assert "layer=<ReLU>" in repr(own)
    with pytest.raises(ValueError, match="layer is a <Tanh> that is no part of the model; name it"):
        GradCAM(layer=nn.Tanh())(model, x, 0)


def test_attribution_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Attribution()
    assert isinstance(Ids()(nn.Identity(), torch.ones(1, 2), 0), Tensor)


def test_receptive_field_takes_the_module_itself():
    model, x = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU()), torch.zeros(1, 1, 9)
    assert receptive_field(model, x, layer=model[1]) == receptive_field(model, x, layer="1")
    with pytest.raises(TypeError, match=r"layer must be a module or a dotted name such as .*, got int"):
        receptive_field(model, x, layer=3)
