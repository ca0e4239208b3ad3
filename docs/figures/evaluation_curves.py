import torch
from style import digits, network, subplots

from lightning_xai import Windows
from lightning_xai.evaluation import RandomMap, perturbation_curves
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import LRP, GradientXInput, Saliency

model, (images, labels) = network(), digits()
images, labels = images[:100], labels[:100]
methods = {"LRP": LRP(), "gradient × input": GradientXInput(), "saliency": Saliency(), "random": RandomMap()}
figure, axes = subplots(1, 2, height=2.4, sharey=True)
how = {"regions": Windows(4), "perturbation": kinds.Constant(0.0), "steps": 16}
for name, method in methods.items():
    found = perturbation_curves(model, images, labels, method, **how)
    style = ":" if name == "random" else "-"
    for panel, curve in zip(axes, (found.morf, found.lerf), strict=True):
        total, count = found.mean_curve(curve, 16)
        panel.plot(torch.linspace(0, 1, 17), total / count, style, label=f"{name}, srg {found.srg.mean():.2f}")
axes[0].set_title("most relevant first")
axes[1].set_title("least relevant first")
axes[0].set_ylabel("probability")
for panel in axes:
    panel.set_xlabel("share of the windows that are gone")
axes[1].legend()
