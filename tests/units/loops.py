"""Re-activation by loops over samples, features and arms, on a small network; what its tests share."""

import pytest
import torch
from torch import nn

from lightning_xai.perturbation import Windows, kinds
from lightning_xai.perturbation.kinds.base import Keys

N, P = 9, 0.03
WINDOWS = Windows((2, 3), (1, 2))
KINDS = {
    "constant": kinds.Constant(0.0),
    "two-sided": kinds.Bidirectional(0.9),
    "local mean": kinds.LocalMean(),
    "noise": kinds.GaussianNoise(),
    "random window": kinds.RandomScale(low=-2, high=2),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
both_units = pytest.mark.parametrize("unit", ["channel", "position"])
both_rules = pytest.mark.parametrize("rule", ["activation", "delta"])


class Net(nn.Module):
    """Two convolutions, the first through a batch norm and an activation in place."""

    def __init__(self, activation=torch.relu):
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 4, 3, stride=2)
        self.last = nn.Linear(4, 3)
        self.activation = activation
        self.rows = []

    def forward(self, x):
        self.rows.append(len(x))
        h = self.norm(self.first(x)).relu_()
        h = self.activation(self.second(h))
        return self.last(h.mean((2, 3)))

    def before(self, x):
        """What the activations receive."""
        first = self.norm(self.first(x))
        return {"first": first, "second": self.second(first.relu())}


def arms(x, regions, kind, ids):
    """R_j x of every feature and arm, [J][A, N, C, *S]."""
    bound = regions.bind(x)
    found = []
    for feature in range(bound.count):
        if kind.windowed:
            copy = x.clone()
            for rows, cells in bound.cells(x, feature):
                bound.put(copy, rows, kind.arms(cells, Keys(ids[rows], feature))[0], feature)
            found.append(copy.unsqueeze(0))
            continue
        copies = []
        for arm in kind.arms(x, Keys(ids)):
            copies.append(x.clone())
            bound.write(copies[-1], arm, feature)
        found.append(torch.stack(copies))
    return found


def by_hand(net, x, layer, regions, kind, ids=None, sigma=torch.relu):
    """The largest changes over arms [N, J, K, P], and the clean activations [N, K, P]."""
    with torch.no_grad():
        clean = net.before(x)[layer]
        rest = sigma(torch.zeros((), dtype=x.dtype))
        each = [
            torch.stack([sigma(net.before(arm)[layer] - clean) - rest for arm in copies]).amax(0)
            for copies in arms(x, regions, kind, tuple(range(len(x))) if ids is None else ids)
        ]
    change = torch.stack(each, 1).flatten(3)
    rounding = 1e-5 * clean.abs().flatten(2).amax(2)[:, None, :, None]
    return torch.where(change > rounding, change, change.clamp(max=0)), sigma(clean).flatten(2)


def upper(values, p):
    """The value of rank floor(p n) + 1 from above, of [K, n]."""
    return values.sort(1, descending=True).values[:, int(p * values.shape[1])]


def counted(change, activation, rule, unit, p):
    """M [J, units] and T."""
    if unit == "position":
        change, activation = change.flatten(2).unsqueeze(3), activation.flatten(1).unsqueeze(2)
    largest = change.amax(3)
    pool = activation.transpose(0, 1) if rule == "activation" else largest.permute(2, 0, 1)
    threshold = upper(pool.flatten(1), p)
    return ((largest > threshold) & (largest > 0)).sum(0), threshold


def peaks_of(change, activation, rule, unit):
    """The largest of the values that the thresholds are taken from, of every unit."""
    pool = activation if rule == "activation" else change.amax(3).transpose(1, 2)
    if unit == "position":
        pool = activation.flatten(1).unsqueeze(2) if rule == "activation" else change.flatten(2).transpose(1, 2)
    return pool.amax((0, 2))


def agree(found, matrix, threshold, shape):
    torch.testing.assert_close(found.threshold.flatten(), threshold, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.by_feature, matrix.sum(1))
    assert torch.equal(found.by_unit, matrix.sum(0).view(shape))
    assert found.total == matrix.sum()
    if len(shape) == 1:
        assert torch.equal(found.by_feature_and_unit, matrix)
    else:
        assert found.by_feature_and_unit is None
    best = matrix.flatten().sort(descending=True).values[:7].tolist()
    pairs = found.top_pairs(7)
    assert [pair.samples for pair in pairs] == [count for count in best if count]
    for pair in pairs:
        unit = pair.unit if isinstance(pair.unit, tuple) else (pair.unit,)
        assert matrix.view(len(matrix), *shape)[(pair.feature, *unit)] == pair.samples
