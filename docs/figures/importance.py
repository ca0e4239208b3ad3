import torch
from style import bar, digit, heat, network, picture, subplots

from lightning_xai import Windows
from lightning_xai.perturbation import importance, kinds, relative_importance

model, windows = network(), Windows(4)
shown = torch.cat([digit(3), digit(4), digit(7)])
local = importance(model, shown, "predicted", regions=windows, perturbation=kinds.Constant(0.0), score="logit")
bound = windows.bind(shown)
painted, relative = bound.paint(local), bound.paint(relative_importance(local))
end = float(painted.abs().max())

figure, axes = subplots(3, 3, width=5.2, height=4.8)
for row, panels in enumerate(axes):
    picture(panels[0], shown[row], "input" if row == 0 else "")
    signed = heat(panels[1], painted[row], "local importance LI" if row == 0 else "", end)
    unsigned = heat(panels[2], relative[row], "relative importance RI" if row == 0 else "", 1.0, signed=False)
bar(figure, signed, axes[:, 1], "logits")
bar(figure, unsigned, axes[:, 2], "share of the sample's range")
