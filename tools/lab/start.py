# SPDX-License-Identifier: MIT
"""To be imported first, as ``import lab.start``: paths, and the interpreter that has daxfs.

So `tools/fsync_sweep.py` works as it is typed, with whatever python3 the PATH names. Limits: the standard
library alone.
"""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VENV = ROOT / ".venv" / "bin" / "python"

if importlib.util.find_spec("daxfs") is None or importlib.util.find_spec("rich") is None:
    if not VENV.exists() or Path(sys.executable) == VENV:
        raise SystemExit(f"{Path(sys.argv[0]).name}: daxfs is not installed for {sys.executable}: make build")
    os.execv(VENV, [str(VENV), *sys.argv])

# Tests first: tools/ has modules of the same names as tests/ (races).
for _folder in (ROOT / "tools", ROOT / "tests"):
    if str(_folder) in sys.path:
        sys.path.remove(str(_folder))
    sys.path.insert(0, str(_folder))
