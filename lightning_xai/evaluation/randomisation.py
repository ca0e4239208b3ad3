"""Randomisation: does a map depend on the network's parameters, and on the class?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_xai._checks import check_inputs, check_known, unknown
from lightning_xai._guard import forward, isolated_eval, keyed_generator, observe_modules, uncompiled
from lightning_xai.attribution import Attribution, Explanation
from lightning_xai.binding import bind
from lightning_xai.bound_model import network_of
from lightning_xai.evaluation.correlation import UNDEFINED
from lightning_xai.evaluation.features import precise
from lightning_xai.evaluation.masking import pooled
from lightning_xai.evaluation.refusals import an_attribution
from lightning_xai.evaluation.similarity import check_similarity, map_similarity
from lightning_xai.inputs import InputsLike
from lightning_xai.operations import unwrapped
from lightning_xai.scores import Target

ORDERS = ("top_down", "bottom_up", "independent")


@dataclass(frozen=True)
class RandomisationStages:
    """The similarity of maps under new parameters with the map under the trained ones.

    Attributes:
        layers: The layer that is new at each stage, by its dotted name.
        similarity: [N, stages].
    """

    layers: tuple[str, ...]
    similarity: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over the stages in which it is defined [N]."""
        return self.similarity.nanmean(1)


def mprt(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    attribution: Attribution,
    *,
    order: str = "top_down",
    similarity: str = "spearman",
    absolute: bool = False,
    parameters: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
) -> RandomisationStages:
    r"""Replace parameters layer by layer, and compare the maps with the one of the trained network: low is good.

    .. math:: \operatorname{sim}(a_\theta, a_{\theta_1}), \dots, \operatorname{sim}(a_\theta, a_{\theta_L})

    A layer is a module that owns parameters, in the order of the first calls. New parameters come from the module's own
    ``reset_parameters`` on a generator keyed by the seed and its dotted name, and are a permutation of the trained ones
    where it has none. Running statistics stay. The trained parameters are back at the end, bit by bit, whatever fails.
    One map per stage.

    Args:
        model: The network.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F].
        target: Class indices [N], one index for all, or ``"predicted"``: the class under the trained parameters.
        attribution: What is measured.
        order: ``"top_down"``: from the output on, cumulative; ``"bottom_up"``: from the input on, cumulative;
            ``"independent"``: one layer at a time, from the output on.
        similarity: ``"spearman"``, ``"cosine"`` or ``"ssim"``.
        absolute: Compare magnitudes, as published, which hides a flipped sign.
        parameters: The new parameters by dotted name; drawn unless given.
        seed: Keys the draws.
        sample_ids: The samples' ids [N]; 0..N-1 unless given.

    Raises:
        TypeError: If the attribution is none.
        ValueError: If something does not fit, or the network's parameters cannot be replaced.

    Source: :cite:`adebayo2018sanity`.

    >>> from lightning_xai.relevance import GradientXInput
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> found = mprt(model, torch.randn(2, 4), 0, GradientXInput())
    >>> found.layers, found.similarity.shape
    (('2', '0'), torch.Size([2, 2]))
    """
    check_known("order", order, ORDERS)
    check_similarity(similarity)
    clean, bound, values, ids = _clean(model, inputs, target, attribution, sample_ids)
    check_similarity(similarity, clean.map)
    layers = _layers(bound, values)
    names = list(layers) if order == "bottom_up" else list(reversed(layers))
    found = []
    with _replacing(bound) as replace:
        new = _new_parameters(bound, layers, seed) if parameters is None else dict(parameters)
        _check_parameters(bound, new)
        for name in names:
            replace({key: new[key] for key in layers[name] if key in new}, keep=order != "independent")
            moved = attribution.explain(bound, values, clean.target, ids)
            found.append(map_similarity(clean.map, moved.map, similarity, absolute=absolute))
    return RandomisationStages(tuple(names), torch.stack(found, 1))


def emprt(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    attribution: Attribution,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
) -> Tensor:
    r"""Compute how much the entropy of the map rises where all parameters are new [N]: high is good, at least -1.

    .. math:: \frac{H(a_{rand}) - H(a)}{H(a)}

    H is the entropy of the histogram of the map in :math:`\min(100, \lceil \sqrt P \rceil)` equal bins from its least
    to its largest value; 0 of a constant map, whose result is NaN. With few positions it says nothing. One map more.
    The other arguments and errors are those of :func:`mprt`. Source: :cite:`hedstrom2024`.

    >>> from lightning_xai.relevance import GradientXInput
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> emprt(model, torch.randn(2, 4), 0, GradientXInput()).shape
    torch.Size([2])
    """
    clean, bound, values, ids = _clean(model, inputs, target, attribution, sample_ids)
    layers = _layers(bound, values)
    with _replacing(bound) as replace:
        new = _new_parameters(bound, layers, seed) if parameters is None else dict(parameters)
        _check_parameters(bound, new)
        replace(new)
        moved = attribution.explain(bound, values, clean.target, ids)
    before, after = histogram_entropy(clean.map), histogram_entropy(moved.map)
    return torch.where(before > 0, (after - before) / torch.where(before > 0, before, 1.0), UNDEFINED)


def random_logit(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    attribution: Attribution,
    *,
    other: Tensor | None = None,
    similarity: str = "spearman",
    absolute: bool = False,
    seed: int = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
) -> Tensor:
    r"""Compare the map of a class with that of another class [N]: low is good.

    .. math:: \operatorname{sim}(a_y, a_{y'}), \qquad y' \ne y \text{ uniform}

    One map more; NaN for a network of one class.

    Args:
        model: The network.
        inputs: Inputs [N, C, \*S] with one to three spatial axes, or a table [N, F].
        target: y.
        attribution: What is measured.
        other: y' [N]; drawn unless given.
        similarity: ``"spearman"``, ``"cosine"`` or ``"ssim"``.
        absolute: Compare magnitudes, which hides a flipped sign.
        seed: Keys the draws together with the samples' ids.
        sample_ids: The samples' ids [N]; 0..N-1 unless given.

    Raises:
        TypeError: If the attribution is none.
        ValueError: If the number of classes is not known.

    Source: :cite:`sixt2020`.

    Two logits that are opposite have opposite maps:

    >>> from lightning_xai.relevance import GradientXInput
    >>> model = nn.Linear(3, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    >>> random_logit(model, torch.ones(1, 3), 0, GradientXInput())
    tensor([-1.], dtype=torch.float64)
    """
    check_similarity(similarity)
    clean, bound, values, ids = _clean(model, inputs, target, attribution, sample_ids)
    check_similarity(similarity, clean.map)
    if clean.classes == 1:
        return precise(clean.score).new_full((len(ids),), UNDEFINED)
    if other is None:
        if not clean.classes:
            raise ValueError("the score does not tell how many classes there are: give the other classes, other=... .")
        draws = [int(torch.randint(clean.classes - 1, (), generator=keyed_generator(seed, "class", i))) for i in ids]
        drawn = torch.tensor(draws, device=clean.target.device)
        other = drawn + (drawn >= clean.target)
    moved = attribution.explain(bound, values, other, ids)
    return map_similarity(clean.map, moved.map, similarity, absolute=absolute)


def histogram_entropy(relevance: Tensor) -> Tensor:
    r"""Compute the entropy, in nats, of the histogram of a map [N].

    .. math:: H = -\sum_b h_b \ln h_b

    with :math:`h_b` the share of the positions in bin b.

    Args:
        relevance: Maps [N, C, \*S] or [N, F], summed over channels.

    >>> histogram_entropy(torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]]))
    tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    positions = precise(pooled(relevance)).flatten(1)
    bins = min(100, math.ceil(math.sqrt(positions.shape[1])))
    found = []
    for row in positions:
        values = row[row.isfinite()]
        if not len(values) or values.min() == values.max():
            found.append(row.new_zeros(()))
            continue
        place = ((values - values.min()) / (values.max() - values.min()) * bins).long().clamp(max=bins - 1)
        shares = place.bincount(minlength=bins) / precise(place.new_tensor(len(place)))
        found.append(torch.special.entr(shares).sum())
    return torch.stack(found)


def _clean(
    model: nn.Module,
    inputs: InputsLike,
    target: Target,
    attribution: Attribution,
    sample_ids: Tensor | Sequence[int] | None,
) -> tuple[Explanation, nn.Module, Tensor, tuple[int, ...]]:
    an_attribution(attribution)
    bound, values = bind(model, inputs)
    ids = check_inputs(values, sample_ids)
    return attribution.explain(bound, values, target, ids), bound, values, ids


def _layers(model: nn.Module, inputs: Tensor) -> dict[str, list[str]]:
    """The parameters of every layer by their dotted names, in the order of the layers' first calls.

    A module that does not run itself, as its parent reads its parameters, belongs to its parent's layer.
    """
    network = unwrapped(network_of(model))
    modules = dict(network.named_modules())
    for name, module in modules.items():
        if type(module).__name__.startswith("FSDP") or isinstance(module, torch.jit.ScriptModule):
            kind = "scripted" if isinstance(module, torch.jit.ScriptModule) else "sharded (fully_shard)"
            raise ValueError(f"the parameters of {name or 'the network'!r} cannot be replaced, as it is {kind}.")
    called: list[str] = [""]
    with isolated_eval(model), uncompiled(network), observe_modules(network, lambda name, _: called.append(name)):
        forward(model, inputs)
    order = list(dict.fromkeys(called))
    found: dict[str, list[str]] = {name: [] for name in order}
    for name, module in modules.items():
        home = name
        while home not in found:
            home = home.rpartition(".")[0]
        found[home] += [f"{name}.{key}" if name else key for key, own in module._parameters.items() if own is not None]
    layers = {name: keys for name, keys in found.items() if keys}
    if not layers:
        raise ValueError("the network has no parameters, so none can be replaced.")
    return layers


@contextmanager
def _replacing(model: nn.Module) -> Iterator[_Replace]:
    """Give a function that replaces parameters by name, and put the trained ones back in the end.

    The tensors are exchanged, not written to, so what comes back is what was there.
    """
    network = unwrapped(network_of(model))
    trained = {name: (parameter, parameter.data) for name, parameter in network.named_parameters()}
    with uncompiled(network):
        replace = _Replace(trained)
        try:
            yield replace
        finally:
            replace({})


class _Replace:
    def __init__(self, trained: Mapping[str, tuple[nn.Parameter, Tensor]]) -> None:
        self._trained = trained

    def __call__(self, new: Mapping[str, Tensor], *, keep: bool = False) -> None:
        """Replace parameters; the others are the trained ones again unless those before are kept."""
        for name, (parameter, data) in self._trained.items():
            if name in new:
                parameter.data = new[name].to(data)
            elif not keep:
                parameter.data = data


def _new_parameters(model: nn.Module, layers: Mapping[str, Sequence[str]], seed: int) -> dict[str, Tensor]:
    """Draw new values of all parameters, by dotted name."""
    network = unwrapped(network_of(model))
    wanted = {key for keys in layers.values() for key in keys}
    new: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        own = [key for key, parameter in module._parameters.items() if parameter is not None and prefix + key in wanted]
        if not own:
            continue
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            drawn = _reset(module, reset, keyed_generator(seed, "parameters", name).initial_seed())
        else:
            drawn = {key: _permuted(module._parameters[key], seed, prefix + key) for key in own}
        new.update((prefix + key, drawn[key]) for key in own)
    names = dict(network.named_parameters())  # of a parameter that has several names, the first
    return {name: values for name, values in new.items() if name in names}


def _reset(module: nn.Module, reset: Callable[[], object], seed: int) -> dict[str, Tensor]:
    """What a module's own initialiser makes of its parameters; the module is left as it was."""
    held = [(parameter, parameter.data) for parameter in module.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    devices = sorted({data.device.index for _, data in held if data.device.type == "cuda"})
    try:
        for parameter, data in held:
            parameter.data = data.clone()
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            reset()
        return {key: own.data for key, own in module._parameters.items() if own is not None}
    finally:
        for parameter, data in held:
            parameter.data = data
        with torch.no_grad():
            for buffer, value in buffers:  # an initialiser resets running statistics, too
                buffer.copy_(value)


def _permuted(parameter: Tensor | None, seed: int, name: str) -> Tensor:
    assert parameter is not None
    order = torch.randperm(parameter.numel(), generator=keyed_generator(seed, "parameters", name))
    return parameter.detach().flatten()[order.to(parameter.device)].view_as(parameter)


def _check_parameters(model: nn.Module, new: Mapping[str, Tensor]) -> None:
    known = dict(unwrapped(network_of(model)).named_parameters())
    for name, values in new.items():
        if name not in known:
            raise ValueError(unknown("parameters", name, known))
        if values.shape != known[name].shape:
            raise ValueError(f"parameters[{name!r}] must be {list(known[name].shape)}, got {list(values.shape)}.")
