import torch
from style import COLOURS, NOTHING, subplots

from lightning_xai.perturbation import kinds

every = [
    kinds.Bidirectional(0.5), kinds.Positive(0.5), kinds.Negative(0.5), kinds.Offset(), kinds.Constant(), kinds.Log(),
    kinds.Exp(), kinds.Inverse(), kinds.Sinusoidal(), kinds.Gaussian(), kinds.Tanh(), kinds.Sigmoid(),
    kinds.Softplus(), kinds.ReLU(), kinds.LeakyReLU(), kinds.Binary(), kinds.UpperThreshold(), kinds.LowerThreshold(),
]  # fmt: skip
v = torch.linspace(-2, 2, 801)
figure, axes = subplots(3, 6, height=4.0, sharex=True, sharey=True)
for panel, kind in zip(axes.flat, every, strict=True):
    panel.axhline(0, color=NOTHING, linewidth=0.5)
    panel.axvline(0, color=NOTHING, linewidth=0.5)
    panel.plot(v, v, ":", color="0.5", linewidth=0.8)
    for arm in kind.arms(v.view(1, 1, -1)):
        made = arm.flatten()
        panel.plot(
            v, made.masked_fill((made.abs() > 4) | ~made.isfinite(), float("nan")), color=COLOURS[0], linewidth=1.1
        )
    strength = f"({kind.strength}={getattr(kind, kind.strength):g})" if kind.strength else "()"
    panel.set_title(f"{type(kind).__name__}\n{strength}", fontsize=7.5)
    panel.set_ylim(-2.6, 4.2)
for panel in axes[-1]:
    panel.set_xlabel("v")
for panel in axes[:, 0]:
    panel.set_ylabel("R(v)")
