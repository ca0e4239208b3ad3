"""Explaining a model leaves no trace of it, however it ends."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_xai._guard import detach_for_autograd, forward_context, hook_outputs, isolated_eval, set_forward_context
from lightning_xai.perturbation import Windows, importance, kinds
from lightning_xai.relevance import LRP


class Untidy(nn.Module):
    """A model that draws, logs, writes to buffers, replaces and adds some, and may break half-way."""

    def __init__(self):
        super().__init__()
        self.norm, self.frozen, self.drop = nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)
        self.register_buffer("written", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("filled", None)
        self.frozen.eval()
        self.frozen.weight.requires_grad_(False)
        self.head.weight.grad = torch.full((3, 6), 0.5)
        self.head.register_forward_hook(lambda *_: None)
        self.calls, self.breaks_at, self.logged = 0, None, []

    def log(self, name, value):
        self.logged.append((name, value))

    def log_dict(self, values):
        self.logged.append(values)

    def forward(self, x):
        self.calls += 1
        self.written += 1
        self.replaced = self.replaced + 1
        self.filled = torch.ones(())
        self.register_buffer("added", torch.ones(()))
        torch.rand(()), np.random.rand(), random.random()  # noqa: NPY002
        self.log("calls", self.calls)
        self.log_dict({"calls": self.calls})
        if self.calls == self.breaks_at:
            raise ArithmeticError("half-way")
        return self.head(self.drop(self.frozen(self.norm(x))))


X = torch.arange(24.0).sin().view(4, 6)


def explain(model, target=1):
    importance(model, X, target, regions=Windows(1), perturbation=kinds.GaussianNoise(), chunk_size=2)


def succeed(model):
    explain(model)
    assert model.calls > 2


def refuse(model):
    with pytest.raises(ValueError, match="target"):
        explain(model, target=7)
    assert model.calls == 1


def break_half_way(model):
    model.breaks_at = 5
    with pytest.raises(ArithmeticError, match="half-way"):
        explain(model)


def tensors(named):
    return {name: None if tensor is None else (id(tensor), tensor.tolist()) for name, tensor in named}


TRACES = {
    "modes": lambda model: [module.training for module in model.modules()],
    "parameters": lambda model: tensors(model.named_parameters()),
    "gradients": lambda model: tensors((name, p.grad) for name, p in model.named_parameters()),
    "requires_grad": lambda model: [p.requires_grad for p in model.parameters()],
    "buffers": lambda model: [tensors(module._buffers.items()) for module in model.modules()],
    "state dict": lambda model: list(model.state_dict()),
    "hooks": lambda model: [
        {name: len(value) for name, value in vars(module).items() if "hooks" in name} for module in model.modules()
    ],
    "attributes": lambda model: [set(vars(module)) for module in model.modules()],
    "logged": lambda model: list(model.logged),
    "torch's randomness": lambda _: torch.get_rng_state().tolist(),
    "numpy's randomness": lambda _: [*np.random.get_state()[1].tolist(), np.random.get_state()[2]],  # noqa: NPY002
    "Python's randomness": lambda _: random.getstate(),
    "gradient mode": lambda _: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    "autocast": lambda _: torch.is_autocast_enabled("cpu"),
    "attention": lambda _: torch.backends.mha.get_fastpath_enabled(),
}
LEFT_BY_A_PLAIN_CALL = {trace for trace in TRACES if "randomness" in trace} | {"buffers", "state dict", "logged"}


@pytest.mark.parametrize("end", [succeed, refuse, break_half_way])
@pytest.mark.parametrize("trace", TRACES)
def test_no_trace_is_left(trace, end):
    model = Untidy()
    before = TRACES[trace](model)
    end(model)
    assert TRACES[trace](model) == before


@pytest.mark.parametrize("trace", TRACES)
def test_a_plain_call_does_leave_traces(trace):
    model = Untidy()
    before = TRACES[trace](model)
    model(X)
    assert (TRACES[trace](model) != before) is (trace in LEFT_BY_A_PLAIN_CALL)


class Witness(nn.Module):
    """Keeps what holds while it runs."""

    def __init__(self):
        super().__init__()
        self.child = nn.Linear(2, 2)

    def forward(self, x):
        self.saw = {
            "training": self.training or self.child.training,
            "gradients": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "attention": torch.backends.mha.get_fastpath_enabled(),
        }
        return self.child(x)


CALM = {"training": False, "gradients": False, "inference": False, "autocast": False, "attention": False}


def witness(**how):
    model = Witness()
    with isolated_eval(model, **how):
        assert not torch.is_autocast_enabled("cpu")
        with forward_context():
            model(torch.ones(1, 2))
        assert not torch.is_autocast_enabled("cpu")
    return model.saw


def test_what_holds_while_explaining():
    assert witness() == CALM
    assert witness(gradients=True) == CALM | {"gradients": True}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mode):
    with mode():
        assert witness() == CALM
        assert witness(gradients=True) == CALM | {"gradients": True}
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_autocast_is_off_unless_the_model_is_called_in_it():
    with autocast():
        assert witness() == CALM
        assert torch.is_autocast_enabled("cpu")
    with set_forward_context(autocast):
        assert witness() == CALM | {"autocast": True}
        assert not torch.is_autocast_enabled("cpu")
    assert witness() == CALM


@pytest.mark.parametrize("enabled", [True, False])
def test_the_attention_fast_path_comes_back_as_it_was(enabled):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        assert witness() == CALM
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_logging_works_again_afterwards_and_the_users_own_stays():
    model, own = Untidy(), []
    explain(model)
    model.log("a", 1)
    assert model.logged == [("a", 1)]

    model.log = users = lambda *given: own.append(given)
    before = model.calls
    explain(model)
    assert vars(model)["log"] is users
    assert own == [("calls", call) for call in range(before + 1, model.calls + 1)]
    assert model.logged == [("a", 1)]


def test_a_log_that_is_not_lightnings_is_left_alone():
    class Logarithm(nn.Module):
        def log(self, x):
            return x.log()

        def forward(self, x):
            return self.log(x)

    x = torch.tensor([[1.0, 2.0]])
    found = importance(Logarithm(), x, 1, regions=Windows(1), perturbation=kinds.Constant(1.0), score="value")
    torch.testing.assert_close(found, torch.tensor([[0.0, torch.tensor(2.0).log()]]))


def test_a_model_made_in_inference_mode_can_be_explained():
    with torch.inference_mode():
        model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
        x = torch.randn(3, 2)
        found = importance(model, x, 0, regions=Windows(1), perturbation=kinds.Constant())
    assert found.isfinite().all()
    assert all(module.training for module in model.modules())


def test_inputs_that_need_gradients_are_detached():
    x = torch.randn(3, 2, requires_grad=True)
    found = importance(nn.Linear(2, 2), x, 0, regions=Windows(1), perturbation=kinds.Constant())
    assert not found.requires_grad
    assert x.grad is None


def test_usable_copies_only_what_autograd_cannot_save():
    plain = torch.ones(2, requires_grad=True)
    assert detach_for_autograd(plain).data_ptr() == plain.data_ptr()
    assert not detach_for_autograd(plain).requires_grad
    with torch.inference_mode():
        made_there = torch.ones(2)
        assert not detach_for_autograd(made_there).is_inference()
    weight = torch.ones(2, requires_grad=True)
    (detach_for_autograd(made_there) * weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(2))


def test_only_modules_are_explained():
    with pytest.raises(TypeError, match=r"model must be .*, got function; wrap a function"), isolated_eval(lambda x: x):
        pass


class TestTapping:
    def test_shows_and_replaces(self):
        model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
        seen = []
        with hook_outputs(model, {"0": seen.append, "1": torch.zeros_like}):
            assert torch.equal(model(X), model[2].bias.expand(4, 3))
        assert torch.equal(seen[0], model[0](X))
        assert len(seen) == 1

    def test_leaves_no_hook_when_the_model_or_a_tap_breaks(self):
        model = nn.Sequential(nn.Linear(6, 4), nn.LSTM(4, 2))
        with (
            pytest.raises(ValueError, match=r"layer '1' returns tuple"),
            hook_outputs(model, {"0": lambda _: None, "1": lambda _: None}),
        ):
            model(X)
        assert not any(module._forward_hooks for module in model.modules())

    def test_lists_near_misses(self):
        model = nn.Sequential()
        model.add_module("head", nn.Linear(6, 4))
        with (
            pytest.raises(ValueError, match=r"layer 'heads' is unknown. Did you mean 'head'\?"),
            hook_outputs(model, {"heads": lambda _: None}),
        ):
            pass
        assert not model.head._forward_hooks


def test_a_model_that_hands_its_mode_on_itself_is_told():
    class Hidden(nn.Linear):
        def train(self, mode=True):
            self.__dict__["told"] = mode
            return super().train(mode)

    model = Hidden(3, 2).eval()
    model.__dict__["told"] = True
    with isolated_eval(model):
        assert model.told is False


def compiled_forward(model, backend):
    """Compiles a module as Lightning does with what it is given to fit."""
    model.forward = torch.compile(model.forward, backend=backend)
    return model


def compiled_in_place(model, backend):
    model.compile(backend=backend)
    return model


@pytest.mark.parametrize("compiled", [torch.compile, compiled_in_place, compiled_forward], ids=lambda way: way.__name__)
def test_explaining_compiles_nothing(compiled):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    model = compiled(copy.deepcopy(plain), backend=backend)
    trained = model(torch.ones(2, 6))
    x, ask = torch.randn(3, 6), {"regions": Windows(2), "perturbation": kinds.Constant(0.0)}
    torch.testing.assert_close(importance(model, x, 1, **ask), importance(plain, x, 1, **ask))
    torch.testing.assert_close(LRP()(model, x, 1), LRP()(plain, x, 1))
    assert model(torch.ones(2, 6)).equal(trained)
    assert len(graphs) == 1
