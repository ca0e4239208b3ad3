from style import cat, outline, picture, subplots

from lightning_xai import Windows
from lightning_xai.perturbation import kinds

photo = cat(128)[None]
shown = {
    "the photo": None,
    "Blur(4)": kinds.Blur(4.0),
    "LocalMean()": kinds.LocalMean(),
    "ChannelMean()": kinds.ChannelMean(),
    "Permute()": kinds.Permute(),
    "GaussianNoise(std=.2)": kinds.GaussianNoise(std=0.2),
    "UniformNoise(±.5)": kinds.UniformNoise(low=-0.5, high=0.5),
    "Replace(mirrored)": kinds.Replace(photo.flip(-1)),
    "RandomScale()": kinds.RandomScale(seed=3),
    "Constant(0)": kinds.Constant(0.0),
}
grid = Windows(64).bind(photo)
figure, axes = subplots(2, 5, height=3.2)
for panel, (title, kind) in zip(axes.flat, shown.items(), strict=True):
    image = photo.clone()
    if kind is not None:
        cells = photo[(..., *grid.boxes[0])] if kind.windowed else photo
        made = kind.arms(cells)[0]
        image[(..., *grid.boxes[0])] = made if kind.windowed else made[(..., *grid.boxes[0])]
        outline(panel, grid.boxes[0], "white")
    picture(panel, image[0], title)
    panel.title.set_fontsize(7.5)
