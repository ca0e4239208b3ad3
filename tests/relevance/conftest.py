"""What the tests of relevance share."""

import sys
from pathlib import Path

from torch.distributed import fsdp

sys.path.insert(0, str(Path(__file__).parent))  # for `networks`

# Before torch 2.6 models could be sharded on GPUs only.
collect_ignore = [] if hasattr(fsdp, "fully_shard") else ["test_sharded.py"]
