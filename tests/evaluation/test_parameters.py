"""New parameters: what is a layer, which networks are refused by name, and the network as it was, whatever fails."""

import copy
from dataclasses import dataclass

import pytest
import torch
from draws import close, draw
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import start_processes
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.evaluation import emprt, mprt, random_logit
from lightning_xai.evaluation.parameters import layers_of
from lightning_xai.metrics import Randomisation
from lightning_xai.perturbation import PerturbationImportance, kinds
from lightning_xai.relevance import LRP, GradientXInput


def network(first=None):
    return nn.Sequential(nn.Linear(4, 3) if first is None else first, nn.Tanh(), nn.Linear(3, 2)).double()


def tensors(model):
    """Every tensor that a module holds, of whatever sort, with its memory and a copy."""
    held = {}
    for name, module in model.named_modules():
        for key, value in {**module._parameters, **module._buffers, **vars(module)}.items():
            if isinstance(value, torch.Tensor):
                held[f"{name}.{key}"] = value, value.data_ptr(), value.detach().clone()
    return held


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name, (value, memory, values) in before.items():
        assert after[name][0] is value, name
        assert after[name][1] == memory, name
        assert torch.equal(after[name][2], values), name


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def test_a_parameter_of_two_layers_becomes_new_with_either():
    model, x = Tied(), draw(3, 4)
    new = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    assert list(new) == ["a.weight", "a.bias", "b.bias"]
    found = mprt(model, x, 1, GradientXInput(), parameters=new, similarity="cosine")
    assert found.layers == ("b", "a")
    clean = GradientXInput()(model, x, 1)
    for stage, names in enumerate((["a.weight", "b.bias"], list(new))):
        other = Tied()
        other.load_state_dict(
            {**model.state_dict(), **{name: new[name] for name in names}} | {"b.weight": new["a.weight"]}
        )
        close(found.similarity[:, stage], torch.cosine_similarity(clean, GradientXInput()(other, x, 1)))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm, weight_norm, spectral_norm]
)
def test_what_a_weight_is_made_of_is_new_and_comes_back(norm):
    seen = []

    @dataclass(frozen=True)
    class Seeing(GradientXInput):
        def attribute(self, model, *args):
            found = super().attribute(model, *args)
            seen.append(model[0].weight.detach().clone())
            return found

    model, x = network(norm(nn.Linear(4, 3))).eval(), draw(2, 4)  # in training mode a look at the weight moves buffers
    model(x)
    before, clean = tensors(model), model[0].weight.detach().clone()
    found = mprt(model, x, 0, Seeing())
    assert found.layers == ("2", "0")
    assert torch.equal(seen[1], clean)  # the layer after it is new
    assert not torch.equal(seen[2], clean)
    after = tensors(model)
    assert_same(
        {k: v for k, v in before.items() if k != "0.weight"}, {k: v for k, v in after.items() if k != "0.weight"}
    )
    assert torch.equal(model[0].weight, clean)  # which every pass computes anew


class Gain(nn.Module):
    """Reads a parameter of its own before its layer runs; a spare layer that nothing reads."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(4).double())
        self.linear, self.read, self.spare = (nn.Linear(4, 4).double() for _ in range(3))

    def forward(self, x):
        return self.linear(x * self.gain) + functional.linear(x, self.read.weight)


def test_a_module_begins_before_those_inside_it_and_what_nothing_reads_is_in_no_layer():
    model = nn.Sequential(nn.Linear(4, 4).double(), Gain())
    assert layers_of(model, draw(1, 4)) == {
        "0": ["0.weight", "0.bias"],
        "1": ["1.gain", "1.read.weight"],
        "1.linear": ["1.linear.weight", "1.linear.bias"],
    }


def test_lrp_reads_the_new_weights():
    model, x = network(), draw(2, 4)
    new = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    LRP()(model, x, 0)
    found = mprt(model, x, 0, LRP(), parameters=new, similarity="cosine")
    other = network()
    other.load_state_dict(new)
    close(found.similarity[:, -1], torch.cosine_similarity(LRP()(model, x, 0), LRP()(other, x, 0)))


@dataclass(frozen=True)
class Interrupted(Attribution):
    """Fails where the network is not the trained one."""

    error: type[BaseException]
    score = "logit"

    def attribute(self, model, inputs, target, sample_ids, details):
        if model[0].marked and not torch.equal(model[0].marked[0], model[0].weight):
            raise self.error
        return Explanation.of(*self.clean(model, inputs, target), inputs)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("measure", [mprt, emprt])
def test_parameters_come_back_whatever_ends_it(measure, error):
    model, x = network(), draw(2, 4)
    model[0].marked = [model[0].weight.detach().clone()]
    before = tensors(model)
    with pytest.raises(error):
        measure(model, x, 0, Interrupted(error))
    assert_same(before, tensors(model))


class Made(nn.Linear):
    """Its initialiser makes everything anew: parameters, a buffer, an attribute; it writes to a tensor, too."""

    def __init__(self, fails=False):
        super().__init__(4, 3)
        self.register_buffer("seen", torch.zeros(1))
        self.held, self.fails, self.ready = torch.zeros(1), fails, True

    def reset_parameters(self):
        self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.zeros(3))
        if getattr(self, "ready", False):
            self.seen = torch.ones(1)
            self.held.add_(1)
            self.extra = 5
            if self.fails:
                raise ZeroDivisionError("on purpose")


@pytest.mark.parametrize("fails", [False, True])
def test_an_initialiser_leaves_nothing_behind(fails):
    model, x = network(Made(fails)), draw(2, 4)
    before, random = tensors(model), torch.get_rng_state()
    if fails:
        with pytest.raises(ValueError, match=r"the initialiser of layer '0' failed .ZeroDivisionError: on purpose"):
            emprt(model, x, 0, GradientXInput())
    else:
        assert emprt(model, x, 0, GradientXInput()).isfinite().all()
    assert_same(before, tensors(model))
    assert not hasattr(model[0], "extra")
    assert torch.equal(torch.get_rng_state(), random)


class FSDPLinear(nn.Linear):
    """Called like what fully_shard makes of a layer."""


class Strange(torch.Tensor):
    """A tensor that is not plain, as those of several devices are."""


def held_elsewhere():
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Strange))
    return layer


def made_in_inference_mode():
    with torch.inference_mode():
        return nn.Linear(4, 3)


def quantised():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)))[0]


@pytest.mark.filterwarnings("ignore:.*quantiz.*:DeprecationWarning", "ignore:.*quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.LazyLinear(3), "do not exist before its first pass: run it once"),
        (lambda: nn.Linear(4, 3, device="meta"), "are on the meta device"),
        (made_in_inference_mode, "were made in inference mode"),
        (lambda: FSDPLinear(4, 3), "is sharded"),
        (held_elsewhere, "are no plain tensors but Stranges"),
        (quantised, "is quantised: measure the network that it was made from"),
    ],
)
def test_networks_whose_parameters_cannot_be_replaced_are_refused_by_name_before_any_pass(make, words):
    model = nn.Sequential(make(), nn.Tanh(), nn.Linear(3, 2))
    attribution = PerturbationImportance(1, kinds.Constant(0.0))
    for measure in (mprt, emprt):
        with pytest.raises(ValueError, match=f"the parameters of '0' cannot be replaced, as .*{words}"):
            measure(model, torch.rand(1, 4), 0, attribution)


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class CompiledByADecorator(Around):
    forward = torch.compile(Around.forward, backend="aot_eager")


def compiled_in_place(model):
    model.compile(backend="aot_eager")
    model[0].compile(backend="aot_eager")
    return model


@pytest.mark.parametrize(
    "compiled",
    [
        lambda model: torch.compile(model, backend="aot_eager"),
        compiled_in_place,
        lambda model: Around(torch.compile(model, backend="aot_eager")),
        CompiledByADecorator,
        nn.DataParallel,
    ],
)
def test_a_compiled_network_is_measured_as_it_was_written(compiled):
    model, x = network(), draw(2, 4)
    plain = copy.deepcopy(model)
    wrapped = compiled(model)
    nested = isinstance(wrapped, Around)
    before, output = tensors(model), wrapped(x)  # which compiles it
    expected = mprt(Around(plain) if nested else plain, x, 0, GradientXInput())
    found = mprt(wrapped, x, 0, GradientXInput())
    assert found.layers == expected.layers == (("inner.2", "inner.0") if nested else ("2", "0"))
    close(found.similarity, expected.similarity)
    assert_same(before, tensors(model))
    close(wrapped(x), output)


def measure_shards(rank, world, folder):
    """Refused in every process alike, before any of them waits, with the shards where they were."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    mesh, x = init_device_mesh("cpu", (world,)), torch.linspace(-1, 1, 8).view(2, 4).double()
    for sharded, name in ((("2", ""), "the network"), (("2",), "2")):
        torch.manual_seed(0)
        model = network()
        output = model(x)
        for unit in sharded:
            fully_shard(model.get_submodule(unit), mesh=mesh)
        for one in (model, torch.compile(model, backend="aot_eager")):
            before = [getattr(parameter, "_local_tensor", parameter).clone() for parameter in model.parameters()]
            for measure in (mprt, emprt, Randomisation(GradientXInput()).update):
                asked = () if measure not in (mprt, emprt) else (GradientXInput(),)
                with pytest.raises(ValueError, match=rf"parameters of '{name}' cannot be replaced, as it is sharded"):
                    measure(one, x, 0, *asked)
            after = [getattr(parameter, "_local_tensor", parameter) for parameter in model.parameters()]
            assert all(map(torch.equal, before, after))
            close(model(x), output)
            assert random_logit(one, x, 0, GradientXInput()).isfinite().all()  # which replaces nothing
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12
@pytest.mark.parametrize("world", [1, 2])
def test_a_sharded_network_is_refused_by_name_and_left_as_it_was(world, tmp_path):
    start_processes(measure_shards, (world, str(tmp_path)), nprocs=world, start_method="fork")
