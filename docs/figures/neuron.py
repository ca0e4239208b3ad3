import torch
from style import COLOURS, subplots
from torch import nn

from lightning_xai.relevance import LRP, composites, rules

neuron = nn.Linear(4, 1, bias=False)
neuron.weight.data = torch.tensor([[2.0, 1.0, -1.0, 0.5]])
x = torch.tensor([[2.0, 1.0, 2.0, 0.0]])
shown = {
    "LRP-0": rules.Zero(),
    "ε = 1": rules.Epsilon(1.0),
    "γ = 1": rules.Gamma(1.0),
    "z⁺": rules.ZPlus(),
    "α2β1": rules.AlphaBeta(2.0, 1.0),
    "flat": rules.Flat(),
    "w²": rules.WSquare(),
    "z-box, 0 to 3": rules.ZBox(0.0, 3.0),
}
figure, axes = subplots(1, len(shown), height=2.2, sharey=True)
for number, (panel, (title, rule)) in enumerate(zip(axes, shown.items(), strict=True)):
    found = LRP(composites.RuleList([("*", rule)]))(neuron, x, 0)[0]
    panel.bar(range(4), found, color=[COLOURS[1] if value > 0 else COLOURS[0] for value in found], width=0.7)
    panel.axhline(0, color="0.6", linewidth=0.6)
    panel.set_title(f"{title}\nΣ R = {float(found.sum()):.3g}", fontsize=8)
    panel.set_xticks(range(4), ["4", "1", "-2", "0"])
    if number:
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
axes[0].set_ylabel("relevance, units of s")
figure.supxlabel("contributions $x_j w_j$ of the four inputs, s = 3", fontsize=8)
