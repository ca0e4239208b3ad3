import torch
from style import COLOURS, subplots
from torch import nn

from lightning_xai import Windows
from lightning_xai.perturbation import importance, kinds


class Curve(nn.Module):
    """A score of one cell that saturates on both sides."""

    def forward(self, x):
        """The score [N]."""
        return torch.tanh(2 * x[:, 0] - 1)


model, x, delta = Curve(), torch.tensor([[0.8]]), 0.5
v = torch.linspace(0, 1.4, 141)[:, None]
figure, axes = subplots(1, 2, height=2.4, width_ratios=[1.3, 1])
with torch.no_grad():
    ends = torch.tensor([[0.8 * (1 - delta)], [0.8], [0.8 * (1 + delta)]])
    axes[0].plot(v, model(v), color=COLOURS[6])
    axes[0].plot(ends[[0, 2]], model(ends[[0, 2]]), "o--", color=COLOURS[0], linewidth=1, label=r"$R^-x$ and $R^+x$")
    axes[0].plot([0.8, 0.8], [model(ends)[[0, 2]].mean(), model(ends)[1]], color=COLOURS[1], linewidth=2)
    axes[0].plot(ends[1:2], model(ends[1:2]), "o", color=COLOURS[1], label="x")
axes[0].set_xlabel("value of the cell")
axes[0].set_ylabel("score s")
axes[0].legend()
values = {}
for combine in ("mean", "central", "max_abs"):
    kind = kinds.Bidirectional(delta=delta, combine=combine)
    values[combine] = float(importance(model, x, 0, regions=Windows(1), perturbation=kind, score="value"))
axes[1].barh([*values], [*values.values()], color=COLOURS[0], height=0.6)
axes[1].axvline(0, color="0.6", linewidth=0.6)
axes[1].invert_yaxis()
axes[1].set_xlabel("importance LI, units of s")
