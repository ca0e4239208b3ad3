import torch
from style import COLOURS, bar, digit, heat, network, subplots

from lightning_xai import Windows
from lightning_xai.evaluation import gini
from lightning_xai.metrics.maps import top_share
from lightning_xai.perturbation import importance, kinds

model, windows = network(), Windows(4)
shown = torch.cat([digit(1), digit(4), digit(0)])
local = importance(model, shown, "predicted", regions=windows, perturbation=kinds.Constant(0.0), score="logit")
maps = windows.bind(shown).paint(local)
end = float(maps.abs().max())

figure, axes = subplots(1, 4, height=2.3, width_ratios=[1.7, 1, 1, 1])
cells = torch.linspace(0, 1, maps[0].numel() + 1)
axes[0].plot(cells, cells, ":", color="0.5", linewidth=0.8)
for row, (colour, label) in enumerate(zip(COLOURS, (1, 4, 0), strict=False)):
    sizes = maps[row].abs().flatten()
    held = torch.cat([torch.zeros(1), sizes.sort().values.cumsum(0) / sizes.sum()])
    axes[0].plot(cells, held, color=colour, label=f"digit {label}")
    title = f"digit {label}\nG = {float(gini(sizes)):.2f}, T = {float(top_share(sizes)):.2f}"
    drawn = heat(axes[1 + row], maps[row], title, end)
axes[0].axvline(0.9, color="0.6", linewidth=0.6)
axes[0].set_xlabel("share of the cells, the weakest first")
axes[0].set_ylabel("share of |LI| that they hold")
axes[0].legend()
bar(figure, drawn, axes[3], "LI (logits)")
