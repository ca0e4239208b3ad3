"""What the tests of networks share."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `matrix`, `zoo` and what they are made of

# Before torch 2.6 transformers has no models.
collect_ignore = [] if torch.__version__ >= (2, 6) else ["test_matrix.py", "test_text.py"]
