"""Which rule every operation of a network gets, said before anything is run."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule, LightningModule

from lightning_xai.attribution import Attribution
from lightning_xai.callbacks.explain import unpack_batch
from lightning_xai.callbacks.monitor import ExplanationMonitor
from lightning_xai.relevance import LRP, RuleTable, rule_table


def rules_of(
    attribution: Attribution, monitor: ExplanationMonitor, model: LightningModule, data: LightningDataModule
) -> RuleTable:
    """The table for the network as it will be explained, by its first validation sample.

    Raises:
        ValueError: If the attribution has no rules.
    """
    if not isinstance(attribution, LRP):
        raise ValueError(
            f"show_rules=true is for attribution=lrp; {type(attribution).__name__} has no rules to choose."
        )
    data.prepare_data()
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    inputs = (monitor.unpack or unpack_batch)(batch)[0]
    return rule_table(monitor._network(model), inputs[:1], attribution.composite)
