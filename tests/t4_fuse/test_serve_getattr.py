# SPDX-License-Identifier: MIT
"""A native GETATTR is byte for byte what pyfuse3 and libfuse would have made of the same inode."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("getattr_oracle.py")


def test_replies_are_the_same_bytes():
    command = [sys.executable, "-P", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == 16
