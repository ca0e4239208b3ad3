from style import attributed, digit, network, picture, subplots

from lightning_xai.evaluation import relevance_mass
from lightning_xai.relevance import LRP, GradCAM, GradientXInput, Saliency

model, image = network(), digit(4)
ink = image[:, 0] > 0.5
methods = {
    "LRP": LRP(),
    "gradient × input": GradientXInput(),
    "saliency": Saliency(),
    "Grad-CAM": GradCAM(),
}
figure, axes = subplots(1, 5, height=1.7)
picture(axes[0], image[0], "input")
for panel, (name, method) in zip(axes[1:], methods.items(), strict=True):
    found = method(model, image, 4)
    attributed(panel, found, f"{name}\n{relevance_mass(found, ink).item():.2f} on ink")
