# SPDX-License-Identifier: MIT
"""Where the tests of requests without a mount find regions and data paths (callkit.py)."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / folder) for folder in ("t2_meta", "t3_data")]
