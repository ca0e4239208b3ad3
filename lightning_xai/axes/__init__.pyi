from lightning_xai.axes.facts import AxisFacts as AxisFacts
from lightning_xai.axes.facts import AxisTable as AxisTable
from lightning_xai.axes.facts import axis_facts as axis_facts
