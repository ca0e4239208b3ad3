"""Whatever is asked of a network that runs out of memory above a few rows is what it is with memory enough."""

import pytest
import torch
from torch import nn

from lightning_xai import metrics, perturbation, relevance, units
from lightning_xai.perturbation import kinds

X = torch.rand(7, 1, 6, 6, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0])
MASKS = torch.arange(7 * 36).view(7, 6, 6) % 2
SWEEP = {"regions": 3, "perturbation": kinds.GaussianNoise()}
LAYER = {"layer": "net.0"}


class Net(nn.Module):
    """Runs out of memory above ``memory`` rows, before or behind its first layer."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 3), nn.Identity()
        )
        self.memory = self.largest = None

    def forward(self, x):
        for layer in self.net:
            x = layer(x)
            if self.memory is not None and len(x) > self.memory:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        self.largest = max(self.largest or 0, len(x))
        return x


def updated(metric, model, **further):
    metric.update(model, X, Y, **further)
    return {key: value for key, value in metric.compute().items() if value.is_floating_point()}


ASKED = {
    "importance": lambda m: perturbation.importance(m, X, Y, **SWEEP),
    "synergy": lambda m: perturbation.synergy(m, X, Y, **SWEEP),
    "importance of an anchor": lambda m: perturbation.interaction(m, X, Y, anchor=1, **SWEEP),
    "perturbation importance": lambda m: perturbation.PerturbationImportance(3, "blur")(m, X, Y),
    "threshold": lambda m: units.activation_threshold(m, X, p=0.1, **LAYER).value,
    "threshold of a loader": lambda m: units.activation_threshold(m, [X[:5], X[5:]], p=0.1, **LAYER).value,
    "search": lambda m: units.top_samples(m, X, n=3, **LAYER).value,
    "captures": lambda m: units.unit_activations(m, X, **LAYER),
    "dissection": lambda m: units.dissect(m, X, MASKS, concepts=["even", "odd"], p=0.1, **LAYER).iou,
    "ablation": lambda m: units.ablate_units(m, X, Y, **LAYER).score_drop,
    "ablation by the mean": lambda m: units.ablate_units(m, X, Y, value="mean", engine="repeat", **LAYER).score_drop,
    "re-activation": lambda m: units.reactivation(m, X, p=0.1, **SWEEP, **LAYER).by_feature_and_unit.double(),
    "threshold metric": lambda m: updated(metrics.ActivationThreshold("net.0", p=0.1), m),
    "search metric": lambda m: updated(metrics.TopSamples("net.0", n=3), m),
    "dissection metric": lambda m: updated(metrics.Dissection("net.0", ["even", "odd"], 0.2), m, masks=MASKS),
    "re-activation metric": lambda m: updated(metrics.Reactivation("net.0", 3, kinds.GaussianNoise(), p=0.1), m),
}


def ledger(model):
    found = relevance.LRP().explain(model, X, Y, details=("ledger",)).details["ledger"]
    return torch.stack([found.biases, found.epsilon, found.balance, found.layers["net.0"], found.received[6]])


ATTRIBUTED = {
    "gradient x input": lambda m: relevance.GradientXInput()(m, X, Y),
    "LRP": lambda m: relevance.LRP()(m, X, Y),
    "ledger": ledger,
    "Grad-CAM": lambda m: relevance.GradCAM(layer="net.0")(m, X, Y),
    "relevance metric": lambda m: updated(metrics.Relevance(relevance.LRP()), m),
    "integrated gradients": lambda m: relevance.IntegratedGradients(steps=5)(m, X, Y),
    "smoothed gradients": lambda m: relevance.SmoothGrad(draws=5)(m, X, Y),
    "Score-CAM": lambda m: relevance.ScoreCAM(layer="net.0")(m, X, Y),
    "Ablation-CAM": lambda m: relevance.AblationCAM(layer="net.0")(m, X, Y),
}
CASES = [(ASKED[name], memory, name) for name in ASKED for memory in (1, 2, 5)]
CASES += [(ATTRIBUTED[name], memory, name) for name in ATTRIBUTED for memory in (1, 3, 7, 11)]


@pytest.mark.parametrize(
    ("ask", "memory"), [case[:2] for case in CASES], ids=[f"{case[2]}-{case[1]}" for case in CASES]
)
def test_running_out_of_memory_changes_nothing(ask, memory):
    torch.manual_seed(0)
    model = Net().double()
    expected = ask(model)
    model.memory, model.largest = memory, None
    torch.testing.assert_close(ask(model), expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert model.largest <= memory


@pytest.mark.parametrize("ask", (ASKED | ATTRIBUTED).values(), ids=ASKED | ATTRIBUTED)
def test_one_row_that_does_not_fit_is_the_error_of_the_model(ask):
    model = Net().double()
    model.memory = 0
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        ask(model)
