from style import network, picture, subplots

from lightning_xai.units import maximize_activation
from lightning_xai.units.maximization import Ascent, Bounds, ClassScore, Jitter, TotalVariation

ascent = Ascent(steps=150, bounds=Bounds(0.0, 1.0), regularizers=[TotalVariation(0.03)], robustness=[Jitter(2)])
found = maximize_activation(network(), ClassScore(range(10)), (1, 28, 28), ascent=ascent)
figure, axes = subplots(2, 5, width=6.0, height=2.8)
for label, panel in enumerate(axes.flat):
    picture(panel, found.inputs[label], f"{label}: logit {float(found.value[label]):.0f}")
