from style import attributed, cat, photo_input, photo_network, picture, subplots

from lightning_xai.relevance import LRP, composites

model, x = photo_network(), photo_input()
box = {"low": -127 / 128, "high": 1.0}
shown = {
    "EpsilonPlus": composites.EpsilonPlus(),
    "EpsilonPlusFlat": composites.EpsilonPlusFlat(),
    "EpsilonGammaBox": composites.EpsilonGammaBox(**box),
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1(),
    "EpsilonAlpha2Beta1Flat": composites.EpsilonAlpha2Beta1Flat(),
    "DeepTaylor, z-box": composites.DeepTaylor(**box),
    "ε = 0.1 everywhere": composites.AttnLRP(epsilon=0.1),
}
figure, axes = subplots(2, 4, height=3.6)
picture(axes.flat[0], cat(), "input")
for panel, (title, composite) in zip(axes.flat[1:], shown.items(), strict=True):
    attributed(panel, LRP(composite)(model, x, "predicted"), title)
