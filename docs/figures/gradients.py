from style import attributed, cat, photo_input, photo_network, picture, subplots

from lightning_xai import relevance

model, x = photo_network(), photo_input()
shown = {
    "saliency, signed": relevance.Saliency(absolute=False),
    "gradient × input": relevance.GradientXInput(),
    "integrated gradients": relevance.IntegratedGradients(steps=16, baseline=-127 / 128),
    "SmoothGrad": relevance.SmoothGrad(sigma=0.1, draws=8, relative=True),
}
figure, axes = subplots(1, 5, height=1.7)
picture(axes[0], cat(), "input")
for panel, (title, attribution) in zip(axes[1:], shown.items(), strict=True):
    attributed(panel, attribution(model, x, "predicted"), title)
