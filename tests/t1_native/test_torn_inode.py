# SPDX-License-Identifier: MIT
"""A native GETATTR looks at the sequence again after its copy of the inode (torn_inode.c)."""

import subprocess

from test_daxio_threads import BUILDS, SOURCES, compiled

SERVE = ["message.c", "serve.c", "serve_file.c", "serve_park.c"]


def test_an_inode_that_changes_while_it_is_copied_is_copied_again(tmp_path):
    program = tmp_path / "torn"
    compiled(program, BUILDS["as-built"][0], "torn_inode.c", [*SOURCES, *SERVE])
    ended = subprocess.run([program], capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 0, ended.stderr[-3000:]
