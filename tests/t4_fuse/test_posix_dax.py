# SPDX-License-Identifier: MIT
"""The POSIX table (test_posix.py) where every file has the DAX flag: in a range of its own, mapped directly.

The areas whose cases move bytes, sizes or times of a file, with uring, and with pyfuse3, which has no direct
mappings: the same files by way of the page cache. Names do not depend on where data are: test_posix.py.
"""

import mounts
import pytest
from test_posix import KNOWN, OF_DATA, runner, table

pytestmark = pytest.mark.mount
CASES = [case for case in table.all_cases() if case.area in OF_DATA]
# Apart from the cases: one mount for each transport, not for each case.
TRANSPORTS = ["uring", pytest.param("pyfuse3", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def pool(transport):
    # huge=never: with huge pages tmpfs gives storage by 2 MiB, which the table does not allow.
    with mounts.MountedRegion(256 * mounts.MIB, pool="never", options="allow_other",
                              transport=transport) as region:
        yield region.mount()
        region.umount()
        checked = region.fsck("-n")
        assert checked.returncode == 0, checked.stdout


@pytest.fixture(scope="module")
def oracle():
    with runner.oracle_mount() as path:
        yield path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("transport", TRANSPORTS, indirect=True, scope="module")
def test_posix_dax(transport, case, pool, oracle, request):
    if request.config.getoption("--transport") not in (None, transport):
        pytest.skip(f"--transport {request.config.getoption('--transport')}")
    verdict = runner.judge(case, str(pool.path), oracle, known=KNOWN)
    if verdict.status == "lacks":
        pytest.skip(str(verdict.mount.value))
    assert verdict.status == "agree", verdict.explain()
