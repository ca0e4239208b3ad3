"""Attributions of a config: one that is built, and several whose measures are put side by side in one run."""

from __future__ import annotations

import inspect
from copy import deepcopy

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_xai._checks import check_known
from lightning_xai.attribution import Attribution
from lightning_xai.scores import CombClasses, Probability


def build_attribution(config: DictConfig) -> Attribution:
    """Build the attribution of a config: LRP by the config's rule, of the config's score unless it names its own.

    A probability is flat where the network is sure, and comb_classes where nothing is perturbed: of these, the logit
    is explained, except by what perturbs, over the config's regions.

    Raises:
        ValueError: If there is a rule, and the attribution takes none.
    """
    chosen = get_object(config.attribution._target_)
    if config.get("rule") is not None and "composite" not in inspect.signature(chosen).parameters:
        raise ValueError(
            f"rule=... says how attribution=lrp passes relevance on, and {chosen.__name__} has no rules: leave out "
            f"rule=... or attribution=..."
        )
    return attribution_of(config.attribution, config)


def attribution_of(entry: DictConfig, config: DictConfig) -> Attribution:
    """Build an attribution, with what its entry leaves null from the config."""
    entry, choices = deepcopy(entry), deepcopy(config)
    OmegaConf.set_struct(choices, False)
    choices.perturbation.pop("strengths", None)
    for part in (entry, entry.get("attribution")):  # and one inside it
        if part is None:
            continue
        perturbs = "perturbation" in part
        for name in ("regions", "perturbation", "score"):
            if part.get(name, ...) is None:
                part[name] = deepcopy(choices[name])
                if name == "score" and not perturbs and get_object(part.score._target_) in (Probability, CombClasses):
                    part.score._target_ = "lightning_xai.scores.Logit"
    attribution: Attribution = instantiate(entry)
    return attribution


def side_by_side(config: DictConfig) -> DictConfig:
    """Make one metric of each attribution where an entry of the config's metrics lists several by their names.

    It is called by the attribution, ``lrp``; and by the entry, too, ``faithfulness_lrp``, where others have that name.

    Raises:
        TypeError: If a list holds something else than names.
        ValueError: If there is no such attribution, or a list names none, or one twice.
    """
    listed = {
        str(name): _names(f"metrics.{name}.attribution", entry.attribution)
        for name, entry in config.metrics.items()
        if isinstance(entry, DictConfig) and isinstance(entry.get("attribution"), ListConfig)
    }
    if not listed:
        return config
    config = deepcopy(config)
    OmegaConf.set_struct(config, False)
    OmegaConf.resolve(config.metrics)  # entries refer to those that are taken apart
    every = [name for names in listed.values() for name in names] + [str(name) for name in config.metrics]
    metrics = {}
    for name, entry in config.metrics.items():
        for one in listed.get(str(name), [""]):
            called = str(name) if not one else one if every.count(one) == 1 else f"{name}_{one}"
            metrics[called] = {**entry, "attribution": _entry(one)} if one else entry
    config.metrics = metrics
    OmegaConf.set_struct(config, True)
    return config


def _names(place: str, listed: ListConfig) -> list[str]:
    names = list(listed)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{place} must list attributions by their names, e.g. [lrp,saliency], got {listed}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{place} must list at least one attribution, and each once, got {listed}.")
    known = GlobalHydra.instance().config_loader().get_group_options("attribution", ObjectType.CONFIG)
    for name in names:
        check_known(place, name, known)
    return names


def _entry(name: str) -> DictConfig:
    """Load the choice of an attribution as its file says it, from wherever Hydra looks for one."""
    path = f"attribution/{name}"
    sources = GlobalHydra.instance().config_loader().get_sources()
    found = next(source for source in sources if source.is_config(path)).load_config(path).config
    assert isinstance(found, DictConfig)
    found.pop("defaults", None)
    return found
