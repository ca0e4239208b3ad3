"""The layer that class activation maps find is none in a branch that loses the positions before it joins."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_xai.relevance import GradCAM


class SpatialTransformer(nn.Module):
    """Turns an image by what it has found in it, as a whole."""

    def __init__(self):
        super().__init__()
        self.find = nn.Sequential(nn.Conv2d(1, 4, 5, stride=2), nn.ReLU())
        self.turn, self.conv, self.head = nn.Linear(4 * 36, 6), nn.Conv2d(1, 5, 3), nn.Linear(5, 3)

    def forward(self, x):
        turn = self.turn(self.find(x).flatten(1)).view(-1, 2, 3)
        x = functional.grid_sample(x, functional.affine_grid(turn, x.shape, align_corners=False), align_corners=False)
        return self.head(self.conv(x).relu().mean((2, 3)))


class PointNet(nn.Module):
    """Turns points by what they have in common, and again as features."""

    def __init__(self, pool):
        super().__init__()
        self.pool, self.up, self.norm = pool, nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8)
        self.find, self.turn = nn.Sequential(nn.Conv1d(8, 40, 1), nn.ReLU()), nn.Linear(40, 64)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.up(x)).relu()
        turn = self.turn(self.find(x).amax(2)).view(-1, 8, 8)
        return self.head(self.pool(torch.bmm(turn.mT, x)))


class Stepwise(nn.Module):
    """A state that goes from step to step, beside the steps themselves."""

    def __init__(self):
        super().__init__()
        self.conv, self.step, self.skip = nn.Conv1d(2, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        frames, state, states = self.conv(x), 0.0, []
        for k in range(x.shape[2]):
            state = torch.tanh(self.step(frames[:, :, k] + state))
            states.append(state)
        return self.head((torch.stack(states, 1) + self.skip(x.mT)).mean(1))


class Recurrent(nn.Module):
    """An LSTM with a path around it."""

    def __init__(self):
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(2, 4, 3, padding=1), nn.LSTM(4, 4, batch_first=True)
        self.skip, self.head = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head((self.lstm(self.conv(x).mT)[0] + self.skip(x.mT)).mean(1))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_spatial_transformer_has_no_default_layer():
    model = SpatialTransformer().eval()
    with pytest.raises(ValueError, match=r"other than by a branch that is pooled.*layer='\.\.\.'"):
        GradCAM()(model, torch.randn(2, 1, 16, 16), 0)


def test_layer_of_a_point_network_stands_before_the_points_are_pooled():
    # The features before the last turn: what is found of them runs later, and is a branch.
    model = PointNet(lambda x: x.mean(2)).eval()
    assert GradCAM().explain(model, torch.randn(2, 3, 12), 0).layer == "norm"


@pytest.mark.parametrize("make", [Stepwise, Recurrent])
def test_steps_that_are_taken_one_by_one_keep_their_positions(make):
    assert GradCAM().explain(make().eval(), torch.randn(2, 2, 6), 0).layer == "conv"
