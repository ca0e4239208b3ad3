import torch
from matplotlib.colors import ListedColormap
from style import COLOURS, NOTHING, bar, digits, heat, network, picture, plain, subplots

from lightning_xai import Windows
from lightning_xai.perturbation import comb_classes, kinds

model, windows = network(), Windows(4)
images, labels = digits()
with torch.no_grad():
    own = model(images).softmax(1)[torch.arange(len(labels)), labels]
shown = images[((own > 0.55) & (own < 0.8)).nonzero().flatten()[:2]]  # right, but not sure: windows matter
found = comb_classes(model, shown, "predicted", regions=windows, perturbation=kinds.Constant(0.0))
bound = windows.bind(shown)
maps = bound.paint(found.local)
end = float(maps.abs().max())
# The class is named where it matters: a window that hardly changes anything has one by chance.
matters = found.local.abs() > 0.02
rivals = found.strongest[matters].unique()
places = torch.where(matters, torch.searchsorted(rivals, found.strongest).float(), float("nan"))

figure, axes = subplots(2, 3, width=5.6, height=3.6)
for row, panels in enumerate(axes):
    picture(panels[0], shown[row], "input" if row == 0 else "")
    drawn = heat(panels[1], maps[row], "importance LI" if row == 0 else "", end)
    panels[2].set_facecolor(NOTHING)
    colours = ListedColormap(COLOURS[: len(rivals)])
    panels[2].imshow(bound.paint(places)[row].numpy(), cmap=colours, vmin=-0.5, vmax=len(rivals) - 0.5)
    plain(panels[2])
    panels[2].set_title("class c*" if row == 0 else "")
    for box, label, named in zip(bound.boxes, found.strongest[row].tolist(), matters[row].tolist(), strict=True):
        if named:
            (top, bottom), (left, right) = ((part.start, part.stop) for part in box)
            middle = ((left + right - 1) / 2, (top + bottom - 1) / 2)
            panels[2].text(*middle, str(label), ha="center", va="center", fontsize=7, color="white")
bar(figure, drawn, axes[:, 1], "difference of probabilities")
