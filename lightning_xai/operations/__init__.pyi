from lightning_xai.operations.mode import Operations as Operations
from lightning_xai.operations.mode import check_visible as check_visible
from lightning_xai.operations.mode import largest_activation as largest_activation
from lightning_xai.operations.mode import module_names as module_names
from lightning_xai.operations.mode import tensors_in as tensors_in
from lightning_xai.operations.mode import unwrapped as unwrapped
