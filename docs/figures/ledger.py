from style import COLOURS, digit, network, subplots

from lightning_xai.relevance import LRP, composites

model, x = network(), digit(4)
shown = {
    "EpsilonPlus": composites.EpsilonPlus(),
    "ε = 0.1 everywhere": composites.AttnLRP(epsilon=0.1),
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1(),
}
figure, axes = subplots(1, 3, height=2.5, sharey=True, sharex=True)
for panel, (title, composite) in zip(axes, shown.items(), strict=True):
    _, ledger = LRP(composite).with_ledger(model, x, "predicted")
    whole = float(ledger.start.sum())
    kinds = {name.removeprefix("net."): value for name, value in ledger.layers.items()}
    bars = {f"layer {name}": float(value) / whole for name, value in kinds.items()}
    bars = {"score": 1.0, **dict(reversed(bars.items())), "input": float(ledger.received.sum()) / whole}
    lost = {"biases": float(ledger.biases) / whole, "ε": float(ledger.epsilon) / whole}
    lost["remainder"] = sum(float(value) for value in ledger.remainder.values()) / whole
    panel.barh([*bars], [*bars.values()], color=COLOURS[0], height=0.65)
    panel.barh([*lost], [*lost.values()], color=COLOURS[1], height=0.65)
    panel.axvline(0, color="0.6", linewidth=0.6)
    panel.set_title(title)
    panel.set_xlabel("share of the score")
axes[0].invert_yaxis()
