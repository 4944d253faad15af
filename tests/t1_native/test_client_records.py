# SPDX-License-Identifier: MIT
"""L1: msync by records of page faults (client_records.c): used where they are all, and never where not."""

import os
import re
import subprocess
from pathlib import Path

import mounts
import pytest
from test_client import KERNEL, NAMES
from test_daxio_threads import WARNINGS, compiled

CASES = re.findall(r'\{"(\w+)", case_\1\}', Path(__file__).with_name("client_records.c").read_text())

pytestmark = [
    pytest.mark.skipif(KERNEL < (6, 7), reason="no asynchronous write protection before kernel 6.7"),
    pytest.mark.skipif(os.geteuid() != 0, reason="not root: it has no records of faults in system calls"),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    target = tmp_path_factory.mktemp("records") / "table"
    compiled(target, ["-O2", "-g", *WARNINGS], "client_records.c", NAMES)
    return target


def run(table, folder, *words, **environment):
    clean = {name: text for name, text in os.environ.items() if name != "DAXFS_RECORDS"}
    done = subprocess.run([table, *words], capture_output=True, text=True, check=False, timeout=120,
                          cwd=folder, env=clean | environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_cases_are_there():
    assert len(CASES) == 12


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("off", "huge", "stress")])
def test_case(table, tmp_path, case):
    run(table, tmp_path, case)


def test_switched_off(table, tmp_path):
    run(table, tmp_path, "off", DAXFS_RECORDS="0")


def test_huge_pages(table):
    with mounts.Tmpfs(64 * mounts.MIB, "always") as tmpfs:
        run(table, tmpfs.path, "huge")


@pytest.mark.parametrize("seed", [1, 2])
def test_no_store_is_missed(table, tmp_path, seed):
    out = run(table, tmp_path, "stress", str(seed))
    by_records, by_scan = map(int, re.findall(r"\d+", out))
    assert by_records > 100 and by_scan > 20, out
