# SPDX-License-Identifier: MIT
"""L1: the client's C half with a daemon that is made up: what is found, flushed, told (client_table.c), and
what programs do that a library in them could break (client_breaks.c).
"""

import os
import re
import signal
import subprocess
from pathlib import Path

import mounts
import pytest
from test_daxio_threads import ROOT, WARNINGS, compiled

HERE = Path(__file__).parent
CLIENT = sorted(path.name for path in (ROOT / "daxfs/client").glob("*.c"))
NAMES = [*(f"../client/{name}" for name in CLIENT), "emulate.c", "flush.c", "flush_x86.c", "pagemap.c"]
CASES, BREAKS = (re.findall(r'\{"(\w+)", case_\1\}', (HERE / name).read_text())
                 for name in ("client_table.c", "client_breaks.c"))
KERNEL = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])

pytestmark = pytest.mark.skipif(KERNEL < (6, 7), reason="no asynchronous write protection before kernel 6.7")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    target = tmp_path_factory.mktemp("client") / "table"
    compiled(target, ["-O2", "-g", *WARNINGS], "client_table.c", NAMES)
    return target


@pytest.fixture(scope="module")
def breaks(tmp_path_factory):
    target = tmp_path_factory.mktemp("client") / "breaks"
    compiled(target, ["-O2", "-g", *WARNINGS], "client_breaks.c", NAMES)
    return target


def test_the_cases_are_there():
    assert len(CASES) == 18 and len(BREAKS) == 11 and len(CLIENT) == 11


@pytest.mark.parametrize("case", [case for case in CASES if case != "huge"])
def test_case(table, case):
    done = subprocess.run([table, case], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", BREAKS)
def test_what_programs_do(breaks, case):
    # Its own process group: a case that hangs is ended with its children.
    with subprocess.Popen([breaks, case], stderr=subprocess.PIPE, text=True, start_new_session=True) as done:
        try:
            _, said = done.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(done.pid, signal.SIGKILL)
            raise
    assert done.returncode == 0, said


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: a tmpfs with huge pages is mounted")
def test_huge_pages(table):
    with mounts.Tmpfs(64 * mounts.MIB, "always") as tmpfs:
        done = subprocess.run([table, "huge"], capture_output=True, text=True, check=False, timeout=60,
                              cwd=tmpfs.path)  # fmt: skip
    assert done.returncode == 0, done.stderr
