import torch
from style import attributed, digit, network, picture, subplots

from lightning_xai.evaluation import random_logit
from lightning_xai.relevance import LRP, GradientXInput, GuidedBackprop

model, image, other = network(), digit(4), torch.tensor([9])
methods = {"LRP": LRP(), "gradient × input": GradientXInput(), "guided backpropagation": GuidedBackprop()}
figure, axes = subplots(2, 4, height=3.4)
picture(axes[0, 0], image[0], "input")
axes[1, 0].set_axis_off()
for column, (name, method) in enumerate(methods.items(), 1):
    alike = random_logit(model, image, 4, method, other=other).item()
    attributed(axes[0, column], method(model, image, 4), f"{name}\nthe 4")
    attributed(axes[1, column], method(model, image, other), f"the 9, correlation {alike:.2f}")
