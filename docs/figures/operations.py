import torch
from style import subplots
from torch import Tensor, nn

from lightning_xai.relevance import LRP, GradientXInput, composites


class Reads(nn.Module):
    """A single operation as a network."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """What the operation gives."""
        return self.function(x)


attend, gradient = LRP(composites.AttnLRP(), score="value"), GradientXInput(score="value")
v = torch.linspace(-6, 6, 240)
pairs = torch.stack([v, torch.ones_like(v)], 1)
figure, axes = subplots(1, 3, height=2.5)

sigmoid = Reads(torch.sigmoid)
axes[0].plot(v, sigmoid(v) - 0.5, ":", color="0.2", zorder=3, label=r"$f(x) - f(0)$")
axes[0].plot(v, attend(sigmoid, pairs, 0)[:, 0], label="Pass")
axes[0].plot(v, gradient(sigmoid, pairs, 0)[:, 0], label="gradient × input")
axes[0].set_title("sigmoid")
axes[0].set_ylabel("relevance, units of s")

softmax = Reads(lambda x: x.softmax(1))
found = attend(softmax, pairs, 0)
axes[1].plot(v, pairs.softmax(1)[:, 0], ":", color="0.2", zorder=3, label="$y_0$")
axes[1].plot(v, found[:, 0], label="$R_0$")
axes[1].plot(v, found[:, 1], label="$R_1$")
axes[1].set_title("softmax of (x, 1)")

norm, three = nn.LayerNorm(3), torch.stack([v, torch.ones_like(v), -torch.ones_like(v)], 1)
axes[2].plot(v, norm(three)[:, 0].detach(), ":", color="0.2", zorder=3, label="$y_0$")
axes[2].plot(v, attend(norm, three, 0).sum(1), label=r"FixedScale, $\sum R$")
axes[2].plot(v, gradient(norm, three, 0).sum(1), label=r"gradient × input, $\sum R$")
axes[2].set_title("layer norm of (x, 1, -1)")
for panel in axes:
    panel.axhline(0, color="0.6", linewidth=0.5)
    panel.set_xlabel("x")
    low, high = panel.get_ylim()
    panel.set_ylim(low, high + 0.5 * (high - low))
    panel.legend(loc="upper left")
