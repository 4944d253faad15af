# SPDX-License-Identifier: MIT
"""L1: entries of mappings under threads: turns, waiters, no lost mark; with and without sanitizers."""

import os
import subprocess

import pytest
from test_daxio_threads import BUILDS, compiled

ROUNDS = {"as-built": 100_000, "races": 3000, "memory": 10_000}


@pytest.mark.parametrize("build", BUILDS)
def test_who_waits_is_told_and_no_mark_is_lost(tmp_path, build):
    """Asserted in entry_threads.c; nobody is left waiting, or this would never end."""
    program = tmp_path / "entries"
    flags = [*BUILDS[build][0], "-Wl,--wrap=calloc"]
    compiled(program, flags, "entry_threads.c", ["entry.c"])
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    ended = subprocess.run([program, str(ROUNDS[build])], capture_output=True, text=True, check=False,
                           timeout=120, env=environment)
    assert ended.returncode == 0, ended.stderr[-6000:]
    print(build, ended.stdout.strip())
