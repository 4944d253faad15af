# SPDX-License-Identifier: MIT
"""L1: the lock of a file: its order, and that it keeps others out, with and without sanitizers."""

import os
import subprocess

import pytest
from test_daxio_threads import BUILDS, compiled

ROUNDS = {"as-built": 100_000, "races": 3000, "memory": 20_000}


@pytest.mark.parametrize("build", BUILDS)
def test_who_waits_gets_its_turn(tmp_path, build):
    """First in, first out once patience has run out; readers go together: asserted in file_lock_turns.c."""
    program = tmp_path / "turns"
    compiled(program, BUILDS[build][0], "file_lock_turns.c", ["file_lock.c"])
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    ended = subprocess.run([program, str(ROUNDS[build])], capture_output=True, text=True, check=False,
                           timeout=120, env=environment)
    assert ended.returncode == 0, ended.stderr[-6000:]
