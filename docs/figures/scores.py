import torch
from style import subplots

from lightning_xai.scores import as_score

z = torch.linspace(-5, 5, 201)
output = torch.stack([z, torch.zeros_like(z), torch.ones_like(z)], 1)
figure, axes = subplots(1, 2, height=2.3)
for panel, names, unit in zip(
    axes, (("probability", "sigmoid"), ("logit", "margin", "log_probability")), ("probability", "score"), strict=True
):
    for name in names:
        panel.plot(z, as_score(name).bind(output, 0, samples=len(z))(output), label=name)
    panel.set_xlabel("logit $z_y$ of the target")
    panel.set_ylabel(f"s ({unit})" if unit == "probability" else "s (logits, nats)")
    panel.legend()
