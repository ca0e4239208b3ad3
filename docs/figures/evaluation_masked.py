from style import cat, photo_input, photo_network, picture, subplots

from lightning_xai.evaluation import masked_scores
from lightning_xai.evaluation.masking import mask_of
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import LRP, GradCAM, composites

model, x = photo_network(), photo_input()
target = model(x).argmax(1)
methods = {"Grad-CAM": GradCAM(), "LRP": LRP(composites.EpsilonPlusFlat())}
figure, axes = subplots(1, 5, height=1.9)
for place, (name, method) in enumerate(methods.items()):
    relevance = method(model, x, target)
    kept, found = mask_of(relevance), masked_scores(model, x, target, relevance, perturbation=kinds.Constant(0.0))
    axes[2 * place + 1].imshow(kept[0], cmap="gray", vmin=0, vmax=1)
    picture(axes[2 * place + 2], (kept * x * 128 + 127)[0] / 255, f"o = {found.masked.item():.2f}")
    axes[2 * place + 1].set_title(f"mask of {name}")
    axes[2 * place + 1].set_axis_off()
picture(axes[0], cat(224), f"p = {found.clean.item():.2f}")
