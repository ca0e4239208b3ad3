from style import cat, picture, subplots

from lightning_xai.perturbation import kinds
from lightning_xai.perturbation.kinds.base import Keys

photo = cat(96)[None]
order = (photo.mean(1, keepdim=True).unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2)).flatten(1)).argsort(1).argsort(1)
figure, axes = subplots(2, 5, height=3.0)
for column, share in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
    gone = (order < share * order.shape[1]).view(1, 12, 12).repeat_interleave(8, 1).repeat_interleave(8, 2)
    picture(axes[0, column], (photo * ~gone)[0], f"{share:.0%} are 0")
    filled = kinds.NoisyLinear(noise=0.01).replaced(photo, gone, Keys((0,)))
    picture(axes[1, column], filled[0].clamp(0, 1), f"{share:.0%} are filled")
