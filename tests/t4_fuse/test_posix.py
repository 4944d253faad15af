# SPDX-License-Identifier: MIT
"""The POSIX table on a daxfs mount (or under --target) against a tmpfs; one test for each case.

Where uring can be had, dev runs the cases about data alone: what names and attributes are answered by is the
same code behind both. `--long` or `--transport dev` runs them all. The same table runs on any mount point by
`python -m tests.posix MOUNTPOINT`. Needs root.
"""

import importlib.util
import sys
from pathlib import Path

import pytest


def _load_table():
    """tests/posix under a name of its own: `posix` is taken, the checkout must stay out of sys.path."""
    if "posix_table" not in sys.modules:
        home = Path(__file__).parents[1] / "posix"
        spec = importlib.util.spec_from_file_location(
            "posix_table", home / "__init__.py", submodule_search_locations=[str(home)]
        )
        sys.modules["posix_table"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["posix_table"])
    return importlib.import_module("posix_table.table"), importlib.import_module("posix_table.runner")


table, runner = _load_table()
KNOWN: dict = {}  # what tmpfs answers, in all of this process
# Areas whose cases move bytes, sizes or times of a file.
OF_DATA = {"io", "append", "copy", "mmap", "exec", "fallocate", "seek", "truncate", "holes", "efbig", "fsync",
           "utimens"}
pytestmark = [pytest.mark.mount, pytest.mark.transports]


@pytest.fixture(scope="module")
def oracle():
    with runner.oracle_mount() as path:
        yield path


@pytest.fixture(scope="module")
def place(request, transport):
    given = request.config.getoption("--target", default=None)
    return str(given or request.getfixturevalue("mounted").path)


@pytest.mark.parametrize("case", table.all_cases(), ids=lambda case: case.id)
def test_posix(case, place, oracle):
    verdict = runner.judge(case, place, oracle, known=KNOWN)
    if verdict.status == "lacks":
        pytest.skip(str(verdict.mount.value))
    assert verdict.status == "agree", verdict.explain()
