from lightning_xai.inputs.inputs import Inputs as Inputs
from lightning_xai.inputs.inputs import InputsLike as InputsLike
from lightning_xai.inputs.inputs import as_inputs as as_inputs
from lightning_xai.inputs.inputs import is_plain as is_plain
