"""Small networks that several tests share; double precision, eval mode, statistics that are not trivial."""

import torch
from torch import nn
from torch.nn import functional


def module(function, **children):
    """A function that calls these modules, as a model."""
    model = nn.Module()
    for name, child in children.items():
        model.add_module(name, child)
    model.forward = function
    return model.eval()


def settled(model, seed=0):
    """The model in double precision and eval mode, with batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                tensor.data = torch.rand(tensor.shape, generator=generator) * (high - low) + low
        if isinstance(module, nn.Linear) and not module.weight.any():  # heads that start at 0
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * 0.05
    return model.double().eval()


class Block(nn.Module):
    """A residual block in modules, with a sum that is a module for peers."""

    def __init__(self, channels, out, stride, norm, add):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=not norm)
        self.bn1 = nn.BatchNorm2d(out) if norm else nn.Identity()
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=not norm)
        self.bn2 = nn.BatchNorm2d(out) if norm else nn.Identity()
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if stride > 1 else nn.Identity()
        self.add = add()
        self.relu2 = nn.ReLU()

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu2(self.add(torch.stack([self.shortcut(x), out], dim=-1)))


class BareSum(nn.Module):
    """The sum over the last axis, as a module."""

    def forward(self, x):
        return x.sum(-1)


def residual(norm=True, add=BareSum):
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, 2, 2, bias=not norm),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        Block(6, 6, 1, norm, add),
        Block(6, 8, 2, norm, add),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def vgg():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, 12),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(12, 5),
    )


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, 2),
        nn.ReLU(),
        nn.Conv2d(5, 7, 3, dilation=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(7 * 9, 9),
        nn.ReLU(),
        nn.Linear(9, 4),
    )


def bias_free():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3, bias=False),
    ).double()


class Spelled(nn.Module):
    """The network of `vgg` in functions, in place wherever that can be, sharing its parameters."""

    def __init__(self, like):
        super().__init__()
        self.like = like

    def forward(self, x):
        layers = self.like
        for index in (0, 3):
            norm = layers[index + 1]
            x = functional.conv2d(x, layers[index].weight, layers[index].bias, padding=1)
            x = functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            x = functional.relu_(x)
        x = functional.max_pool2d(x, 2)
        x = torch.relu_(layers[7](x))
        x = functional.avg_pool2d(x, 2)
        x = x.reshape(len(x), -1) @ layers[11].weight.t()
        x += layers[11].bias
        x = x.clamp_(min=0)
        return torch.addmm(layers[14].bias, x, layers[14].weight.t())
