from style import UNSIGNED, cat, photo_input, photo_network, picture, subplots

from lightning_xai import relevance

model, x = photo_network(), photo_input()
shown = {
    "CAM": relevance.CAM(relu=True),
    "GradCAM": relevance.GradCAM(),
    "GradCAM++": relevance.GradCAMPlusPlus(),
    "XGradCAM": relevance.XGradCAM(),
    "LayerCAM": relevance.LayerCAM(),
    "HiResCAM": relevance.HiResCAM(relu=True),
    "LayerCAM, early": relevance.LayerCAM(layer="blocks.2"),
}
figure, axes = subplots(2, 4, height=3.6)
picture(axes.flat[0], cat(), "input")
for panel, (title, attribution) in zip(axes.flat[1:], shown.items(), strict=True):
    found = attribution(model, x, "predicted")[0, 0]
    picture(panel, cat(224).mean(0, keepdim=True).expand(3, -1, -1), title)
    panel.imshow(found / found.max(), cmap=UNSIGNED, alpha=0.6, vmin=0, vmax=1)
