# SPDX-License-Identifier: MIT
"""L1: the client's C half with a daemon that is made up (client_table.c): what is found, flushed, told."""

import os
import re
import subprocess
from pathlib import Path

import mounts
import pytest
from test_daxio_threads import ROOT, WARNINGS, compiled

HERE = Path(__file__).parent
CLIENT = sorted(path.name for path in (ROOT / "daxfs/client").glob("*.c"))
NAMES = [*(f"../client/{name}" for name in CLIENT), "flush.c", "flush_x86.c", "pagemap.c"]
CASES = re.findall(r'\{"(\w+)", case_\1\}', (HERE / "client_table.c").read_text())
KERNEL = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])

pytestmark = pytest.mark.skipif(KERNEL < (6, 7), reason="no asynchronous write protection before kernel 6.7")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    target = tmp_path_factory.mktemp("client") / "table"
    compiled(target, ["-O2", "-g", *WARNINGS], "client_table.c", NAMES)
    return target


def test_the_cases_are_there():
    assert len(CASES) == 17 and len(CLIENT) == 10


@pytest.mark.parametrize("case", [case for case in CASES if case != "huge"])
def test_case(table, case):
    done = subprocess.run([table, case], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: a tmpfs with huge pages is mounted")
def test_huge_pages(table):
    with mounts.Tmpfs(64 * mounts.MIB, "always") as tmpfs:
        done = subprocess.run([table, "huge"], capture_output=True, text=True, check=False, timeout=60,
                              cwd=tmpfs.path)  # fmt: skip
    assert done.returncode == 0, done.stderr
