import math

from style import attributed, digit, network, picture, subplots

from lightning_xai.evaluation import RandomMap, entropy, gini, magnitudes
from lightning_xai.relevance import LRP, GradCAM, Saliency

model, image = network(), digit(4)
methods = {"LRP": LRP(), "Grad-CAM": GradCAM(), "saliency": Saliency(), "random": RandomMap()}
figure, axes = subplots(1, 5, height=1.8)
picture(axes[0], image[0], f"input\nln P = {math.log(image[0].numel()):.1f}")
for panel, (name, method) in zip(axes[1:], methods.items(), strict=True):
    found = method(model, image, 4)
    sizes, finite = magnitudes(found)
    title = f"H = {entropy(sizes).item():.1f}, G = {gini(sizes, finite).item():.2f}"
    attributed(panel, found, f"{name}\n{title}")
