from style import attributed, digits, network, picture, subplots

from lightning_xai.evaluation import difull, gridpg, mosaics
from lightning_xai.relevance import LRP, GradientXInput, Saliency

model, (images, labels) = network(), digits()
x, target = images[3:4], labels[3:4]
others = {"background": images[100:160], "classes": labels[100:160]}
whole = mosaics(x, target, **others).inputs
figure, axes = subplots(1, 4, height=2.2)
picture(axes[0], whole[0], f"where is the {target.item()}?")
small = whole[:, :, ::2, ::2]
for panel, (name, method) in zip(
    axes[1:], {"LRP": LRP(), "gradient × input": GradientXInput(), "saliency": Saliency()}.items(), strict=True
):
    found = gridpg(model, x, target, method, shrink=True, **others).item()
    apart = difull(model, x, target, method, **others).item()
    attributed(panel, method(model, small, target), f"{name}\nGridPG {found:.2f}, DiFull {apart:.2f}")
