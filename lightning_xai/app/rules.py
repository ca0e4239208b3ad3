"""The table of the rules that the operations of a network get, before anything is explained."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule, LightningModule

from lightning_xai.app.batches import first_inputs
from lightning_xai.attribution import Attribution
from lightning_xai.callbacks.monitor import ExplanationMonitor
from lightning_xai.relevance import LRP, RuleTable, rule_table


def rules_of(
    attribution: Attribution, monitor: ExplanationMonitor, model: LightningModule, data: LightningDataModule
) -> RuleTable:
    """Make the table for the network as it will be explained, by its first validation sample.

    Raises:
        ValueError: If the attribution has no rules.
    """
    if not isinstance(attribution, LRP):
        raise ValueError(
            f"show_rules=true is for attribution=lrp; {type(attribution).__name__} has no rules to choose."
        )
    data.prepare_data()
    data.setup("validate")
    return rule_table(monitor.network(model), first_inputs(data, monitor.unpack), attribution.composite)
