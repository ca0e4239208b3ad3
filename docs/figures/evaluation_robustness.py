from style import digits, network, subplots

from lightning_xai.evaluation import map_changes
from lightning_xai.relevance import LRP, GradientXInput, IntegratedGradients, Saliency, SmoothGrad

model, (images, labels) = network(), digits()
x, y = images[:16], labels[:16]
methods = {
    "LRP": LRP(),
    "gradient × input": GradientXInput(),
    "integrated gradients": IntegratedGradients(steps=8),
    "SmoothGrad": SmoothGrad(draws=8),
    "saliency": Saliency(),
}
radii = (0.01, 0.03, 0.1, 0.3)
figure, axes = subplots(1, 2, height=2.4)
for name, method in methods.items():
    found = [map_changes(model, x, y, method, radius=radius, draws=5) for radius in radii]
    axes[0].plot(radii, [one.max_sensitivity.mean() for one in found], marker=".", label=name)
    axes[1].plot(radii, [one.lipschitz.mean() for one in found], marker=".")
axes[0].set_ylabel("largest change, share of the map")
axes[1].set_ylabel("largest change per length")
for panel in axes:
    panel.set_xscale("log")
    panel.set_xlabel("radius of the steps")
axes[0].legend()
