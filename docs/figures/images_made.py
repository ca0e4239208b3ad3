from style import network, picture, subplots

from lightning_xai.units import maximize_activation
from lightning_xai.units.maximization import (
    Ascent,
    Blurred,
    Bounds,
    ClassScore,
    Fourier,
    Jitter,
    Pixel,
    Rotate,
    Scale,
    TotalVariation,
)

robust = [Jitter(2), Scale(0.9, 1.1), Rotate(10.0)]
shown = {
    "Pixel": {"parametrization": Pixel()},
    "Fourier": {"parametrization": Fourier()},
    "Fourier,\ntransformed": {"robustness": robust},
    "Fourier,\nTotalVariation": {"regularizers": [TotalVariation(0.05)]},
    "Fourier,\nBlurred": {"regularizers": [Blurred(0.5)]},
    "all of them": {"regularizers": [TotalVariation(0.02), Blurred(0.2)], "robustness": robust},
}
model, rough = network(), TotalVariation(1.0)
figure, axes = subplots(1, 6, height=1.9)
for panel, (title, how) in zip(axes, shown.items(), strict=True):
    ascent = Ascent(steps=70, bounds=Bounds(0.0, 1.0), **how)
    found = maximize_activation(model, ClassScore(3), (1, 28, 28), ascent=ascent)
    variation = float(rough.penalty(found.inputs))
    picture(panel, found.inputs[0], title)
    panel.set_xlabel(f"s = {float(found.value):.0f}, TV = {variation:.0f}", fontsize=7.5)
