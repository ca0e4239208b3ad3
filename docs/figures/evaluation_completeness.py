from style import digits, network, subplots

from lightning_xai.evaluation import completeness_gaps
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import LRP, GradientXInput, IntegratedGradients

model, (images, labels) = network(), digits()
images, labels = images[:100], labels[:100]
methods = {"LRP": LRP(), "gradient × input": GradientXInput(), "integrated gradients": IntegratedGradients(steps=16)}
how = {"regions": 28, "perturbation": kinds.Constant(0.0), "score": "logit"}
figure, axes = subplots(1, 3, height=2.4, sharex=True, sharey=True)
for panel, (name, method) in zip(axes, methods.items(), strict=True):
    gap, change = completeness_gaps(model, images, labels, method, **how)
    panel.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
    panel.scatter(change, change + gap, s=8)
    panel.set_title(f"{name}\ncompleteness gap {(gap.abs().sum() / change.abs().sum()).item():.3f}")
    panel.set_xlabel("change of the logit to zeros")
axes[0].set_ylabel("sum of the map")
