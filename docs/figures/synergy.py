from style import bar, digit, heat, network, outline, picture, subplots

from lightning_xai import Windows
from lightning_xai.perturbation import importance, interaction, kinds, synergy

model, windows, shown = network(), Windows(4), digit(4)
arguments = {"regions": windows, "perturbation": kinds.Constant(0.0), "score": "logit"}
local = importance(model, shown, "predicted", **arguments)
anchor = int(local[0].argmax())
joint = synergy(model, shown, "predicted", anchor=anchor, **arguments)
beyond = interaction(model, shown, "predicted", anchor=anchor, **arguments)
bound = windows.bind(shown)
maps = [bound.paint(values)[0] for values in (local, joint, beyond)]
end = max(float(values.abs().nan_to_num().max()) for values in maps)

figure, axes = subplots(1, 4, height=2.0)
picture(axes[0], shown[0], "input")
for panel, values, title in zip(axes[1:], maps, ("importance", "synergy", "interaction I"), strict=True):
    drawn = heat(panel, values, title, end)
for panel in axes:
    outline(panel, bound.boxes[anchor])
bar(figure, drawn, axes[1:], "logits")
