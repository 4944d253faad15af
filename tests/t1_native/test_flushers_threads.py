# SPDX-License-Identifier: MIT
"""L1: helpers of a flush under threads, with and without sanitizers (flushers_threads.c)."""

import os
import subprocess

import pytest
from test_daxio_threads import BUILDS, compiled


@pytest.mark.parametrize("build", BUILDS)
def test_each_piece_is_flushed_once_and_drained(tmp_path, build):
    flags, _, rounds = BUILDS[build]
    program = tmp_path / "flushers"
    compiled(program, flags, "flushers_threads.c", ["flushers.c"])
    ended = subprocess.run([program, str(rounds)], capture_output=True, text=True, check=False, timeout=120,
                           env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"})
    assert ended.returncode == 0, ended.stderr[-6000:]
    print(build, ended.stdout.strip())
