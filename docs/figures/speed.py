import torch
from style import COLOURS, bar, digit, heat, network, outline, picture, subplots

from lightning_xai import Windows
from lightning_xai.perturbation import importance, kinds, speed

model, windows, shown = network(), Windows(4), digit(4)
strengths = [0.125 * k for k in range(1, 9)]
states = [kinds.Negative(delta=strength) for strength in strengths]
arguments = {"regions": windows, "score": "logit"}
fit = speed(model, shown, "predicted", perturbations=states, abscissa="strength", **arguments)
curves = torch.stack([importance(model, shown, "predicted", perturbation=state, **arguments)[0] for state in states])
order = fit.slope[0].argsort()
chosen = [int(order[-1]), int(order[-6]), int(order[0])]

figure, axes = subplots(1, 3, height=2.5, width_ratios=[1.5, 1, 1.2])
t = torch.tensor(strengths)
for colour, window in zip(COLOURS, chosen, strict=False):
    level = curves[:, window].mean() - fit.slope[0, window] * t.mean()
    axes[0].plot(t, curves[:, window], "o", color=colour, markersize=3.5)
    axes[0].plot(t, level + fit.slope[0, window] * t, color=colour, linewidth=1)
axes[0].axhline(0, color="0.6", linewidth=0.6)
axes[0].set_xlabel(r"strength $\delta$")
axes[0].set_ylabel("importance LI (logits)")
picture(axes[1], shown[0], "windows on the left")
bound = windows.bind(shown)
for colour, window in zip(COLOURS, chosen, strict=False):
    outline(axes[1], bound.boxes[window], colour)
bar(figure, heat(axes[2], bound.paint(fit.slope)[0], "speed v"), axes[2], r"logits per unit of $\delta$")
