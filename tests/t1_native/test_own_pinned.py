# SPDX-License-Identifier: MIT
"""L1: how long own ranges wait for pinned pages on fsdax, which own_pinned.c plays."""

import subprocess

import pytest
from test_daxio_threads import BUILDS, SOURCES, compiled


@pytest.mark.parametrize("build", ["as-built", "memory"])
def test_it_is_a_bounded_wait(tmp_path, build):
    """10 ms, then ETXTBSY with nothing changed; no signal stays behind: asserted in own_pinned.c."""
    program = tmp_path / "pinned"
    compiled(program, BUILDS[build][0], "own_pinned.c", SOURCES)
    ended = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr[-6000:]
