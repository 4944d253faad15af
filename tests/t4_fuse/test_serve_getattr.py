# SPDX-License-Identifier: MIT
"""A native GETATTR is byte for byte what pyfuse3 and libfuse would have made of the same inode."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("getattr_oracle.py")


@pytest.mark.parametrize(("arguments", "replies"), [([], 16), (["own"], 17)])
def test_replies_are_the_same_bytes(arguments, replies):
    command = [sys.executable, "-P", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == replies
