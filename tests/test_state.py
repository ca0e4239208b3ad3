"""What a forward pass changes outside the buffers of a model is put back."""

import copy
import itertools
import math
import random
import threading
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from lightning_xai._guard import forward, isolated_eval, watch_writes
from lightning_xai.relevance import LRP


class Busy(nn.Module):
    """Changes everything that a forward pass can change, in every pass."""

    def __init__(self):
        super().__init__()
        self.code = nn.Parameter(torch.arange(3.0), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(3))
        self.memory = torch.zeros(3)
        self.kept = {"last": torch.zeros(3), "list": 1}
        self.history, self.count, self.last = [], 0, None
        self.nested = {"x": [0]}
        self.register_buffer("size", torch.ones(3))
        self.h, self.c = torch.zeros(2, 3)  # views of one memory
        self.generator = torch.Generator().manual_seed(2)

    def forward(self, x):
        with torch.no_grad():
            self.code.mul_(0.5)
            self.scale.data.add_(1.0)
            self.memory += x.detach()[0]
            self.kept["last"].copy_(x[0])
            self.size.data.mul_(2.0)
            self.h.add_(1.0)
            self.c.add_(2.0)
        self.kept["new"] = 2
        self.history.append(len(x))
        self.nested["x"].append(1)
        self.count += 1
        self.last = self.made_up = x
        noise = torch.randn(3, generator=self.generator)
        return x * (self.scale + noise) - self.code


def state(model):
    plain = {name: value for name, value in vars(model).items() if not name.startswith("_")}
    tensors = [
        model.code,
        model.scale,
        model.memory,
        model.kept["last"],
        model.size,
        model.h,
        model.c,
        model.generator.get_state(),
    ]
    names = {name: list(value) if isinstance(value, dict | list) else id(value) for name, value in plain.items()}
    return [tensor.tolist() for tensor in tensors], names, list(model.nested["x"])


@pytest.mark.parametrize("gradients", [False, True])
def test_a_pass_leaves_no_trace(gradients):
    model, x = Busy(), torch.randn(2, 3)
    expected = state(model)
    watch_writes(model, x[:1])
    assert state(model) == expected
    with isolated_eval(model, gradients=gradients):
        outputs = [forward(model, x) for _ in range(2)]
    assert not torch.equal(*outputs)  # it has changed on the way
    assert state(model) == expected
    assert (model.code.requires_grad, model.scale.requires_grad, model.scale.is_leaf) == (False, True, True)


def test_what_the_training_puts_in_its_place_is_restored_and_a_failed_pass_teaches_nothing():
    model, x = Busy(), torch.randn(2, 3)
    with pytest.raises(RuntimeError, match="size"):
        watch_writes(model, torch.ones(1, 4))
    watch_writes(model, x)
    model.memory, model.count = torch.ones(3), 7
    expected = state(model)
    with isolated_eval(model):
        forward(model, x)
    assert state(model) == expected
    assert model.count == 7


def test_an_error_leaves_no_trace():
    model, x = Busy(), torch.randn(2, 3)
    watch_writes(model, x)
    expected = state(model)
    with isolated_eval(model):
        forward(model, x)
        with pytest.raises(RuntimeError, match="size"):
            forward(model, torch.ones(1, 4))
    assert state(model) == expected


def test_lrp_leaves_parameters_that_are_written_to_as_they_were():
    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)
            self.code = nn.Parameter(torch.zeros(3), requires_grad=False)

        def forward(self, x):
            y = self.net(x)
            with torch.no_grad():
                self.code.mul_(0.9).add_(0.1 * y.mean(0))
            return y - self.code

    model = Quantised()
    watch_writes(model, torch.ones(1, 4))
    LRP()(model, torch.ones(2, 4), 0)
    assert model.code.tolist() == [0.0, 0.0, 0.0]
    assert (model.code.is_leaf, model.code.requires_grad) == (True, False)


def test_what_is_not_written_to_is_not_copied(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout())
    watch_writes(model, torch.ones(1, 4))
    copied, clone = [], torch.Tensor.clone
    monkeypatch.setattr(
        torch.Tensor, "clone", lambda tensor, **how: (copied.append(tensor.shape), clone(tensor, **how))[1]
    )
    with isolated_eval(model):
        pass
    assert torch.Size([3, 4]) not in copied
    assert model[0].weight.is_leaf


class Random(nn.Module):
    """Draws by other generators than torch's, writes to arrays, and keeps them in containers, too."""

    def __init__(self):
        super().__init__()
        self.python, self.numpy, self.old = random.Random(1), np.random.default_rng(2), np.random.RandomState(3)
        self.array, self.kept = np.zeros(2), {"generators": [torch.Generator().manual_seed(4)]}

    def forward(self, x):
        self.array += 1
        (generator,) = self.kept["generators"]
        drawn = self.python.random() + self.numpy.random() + self.old.rand() + float(torch.rand(1, generator=generator))
        return x * drawn + float(self.array.sum())


@pytest.mark.filterwarnings("error")
def test_generators_and_arrays_of_any_library_are_put_back():
    model, x = Random(), torch.ones(1, 3)
    expected = copy.deepcopy(model)(x)
    watch_writes(model, x)
    for _ in range(2):
        with isolated_eval(model):
            forward(model, x)
    assert torch.equal(model(x), expected)


class Counter:
    count = 0


class Slotted:
    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


class Opaque(nn.Module):
    """Changes objects, an iterator and a sparse tensor, and holds others that it does not change."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()
        self.inner.counter, self.slotted, self.ids = Counter(), [Slotted()], itertools.count()
        self.sparse = torch.eye(2).to_sparse()
        self.still, self.lock, self.rows = Counter(), threading.Lock(), (row for row in range(3))
        self.trainer_like, self.nan = nn.ModuleList(), math.nan

    def forward(self, x):
        self.inner.counter.count += 1
        self.slotted[0].count += next(self.ids)
        self.sparse.mul_(2.0)
        return x


def test_what_cannot_be_put_back_is_named_once():
    model, x = Opaque(), torch.ones(1, 3)
    next(model.ids)
    with pytest.warns(UserWarning, match="changes what cannot be put back") as said:
        watch_writes(model, x)
    names = str(said[0].message).partition(": ")[2].partition(". ")[0]
    assert set(names.split(", ")) == {
        "'counter' of module 'inner'",
        "'slotted' of the model",
        "'ids' of the model",
        "'sparse' of the model",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch_writes(model, x)


class Unreadable:
    def __repr__(self):
        raise RuntimeError("no name")


class Adapting(nn.Module):
    """Learns while it is evaluated, and changes what torch keeps of its modules."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 3)
        self.recent = OrderedDict.fromkeys(range(3))
        self.named = {Unreadable(): 1}

    def forward(self, x):
        self.recent.move_to_end(next(iter(self.recent)))
        with torch.enable_grad():
            self.net(x.detach()).sum().backward()
        self.net.weight.requires_grad_(False)
        self.net.register_forward_hook(lambda module, inputs, output: output + 1)
        self.extra = nn.Parameter(torch.ones(3))
        return self.net(x) + self.extra


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("learned", [False, True])
def test_gradients_hooks_and_the_order_of_dicts_are_put_back(learned):
    model, x = Adapting(), torch.ones(2, 3)
    watch_writes(model, x)
    if learned:
        model.net.weight.grad, model.net.bias.grad = torch.ones(3, 3), torch.ones(3)
        gradients = [model.net.weight.grad, model.net.bias.grad]
    with isolated_eval(model):
        forward(model, x)
    assert list(model.recent) == [0, 1, 2]
    assert not model.net._forward_hooks
    assert sorted(dict(model.named_parameters())) == ["net.bias", "net.weight"]
    assert model.net.weight.requires_grad
    if learned:
        assert model.net.weight.grad is gradients[0]
        assert all(bool((gradient == 1).all()) for gradient in gradients)
    else:
        assert model.net.weight.grad is model.net.bias.grad is None


class OfClasses(nn.Module):
    __slots__ = ("own",)
    passes = 0

    def __init__(self):
        super().__init__()
        self.own = 0

    def forward(self, x):
        type(self).passes += 1
        self.own += 1
        return x


def test_attributes_of_classes_and_in_slots_are_named():
    with pytest.warns(UserWarning, match="'own' of the model, 'passes' of the model|'passes' of .*, 'own' of the"):
        watch_writes(OfClasses(), torch.ones(1, 3))
