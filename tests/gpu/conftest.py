"""What the tests on devices share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `gpu_subjects`, which `two_devices.py` imports by name too
