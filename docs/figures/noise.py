from style import bar, digit, heat, network, picture, subplots

from lightning_xai import relevance

model, x = network(), digit(3)
noise = {"sigma": 0.2, "draws": 64}
shown = {
    "SmoothGrad": relevance.SmoothGrad(**noise),
    "sensitivity": relevance.Sensitivity(),
    "SquareGrad": relevance.SquareGrad(**noise),
    "VarGrad": relevance.VarGrad(**noise),
}
maps = {title: attribution(model, x, "predicted")[0, 0] for title, attribution in shown.items()}
end = max(float(maps[title].max()) for title in ("sensitivity", "SquareGrad", "VarGrad"))
figure, axes = subplots(1, 5, height=1.9)
picture(axes[0], x[0], "input")
bar(figure, heat(axes[1], maps["SmoothGrad"], "SmoothGrad"), axes[1], "logits per unit of grey")
for panel, title in zip(axes[2:], ("sensitivity", "SquareGrad", "VarGrad"), strict=True):
    drawn = heat(panel, maps[title], title, end, signed=False)
bar(figure, drawn, axes[2:], "(logits per unit)²")
