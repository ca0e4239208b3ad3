from style import bar, digit, heat, network, picture, subplots

from lightning_xai import relevance

model, x = network(), digit(4)
shown = {
    "gradient": relevance.Saliency(absolute=False),
    "Deconvnet": relevance.Deconvnet(),
    "GuidedBackprop": relevance.GuidedBackprop(),
    "ExcitationBackprop": relevance.ExcitationBackprop(),
    "DeepTaylor": relevance.DeepTaylor(low=0.0, high=1.0),
}
figure, axes = subplots(2, 3, width=6.0, height=3.9)
picture(axes[0, 0], x[0], "input")
for panel, (title, attribution) in zip(axes.flat[1:], shown.items(), strict=True):
    values = attribution(model, x, "predicted")[0, 0]
    unit = {"ExcitationBackprop": "probability", "DeepTaylor": "logits"}.get(title, "logits per unit of grey")
    never_negative = title in ("ExcitationBackprop", "DeepTaylor")
    bar(figure, heat(panel, values, title, signed=not never_negative), panel, unit)
