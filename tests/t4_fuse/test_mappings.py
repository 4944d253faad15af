# SPDX-License-Identifier: MIT
"""Direct mappings behave as those of a tmpfs: the cases of tests/posix/direct_*.py on both, and compared.

Once where tmpfs has small pages and once where it has huge ones, with the oracle's the same.
"""

import mmap

import mounts
import pytest
from test_posix import runner, table

pytestmark = pytest.mark.mount
PLACES = [pytest.param(("uring", "never"), id="uring-never"),
          pytest.param(("uring", "always"), id="uring-always"),
          pytest.param(("dev", "always"), id="dev-always", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def places(request):
    """(directory on the mount, directory on a tmpfs with the same huge=)."""
    transport, huge = request.param
    reason = mounts.why_no_transport(transport)
    if request.config.getoption("--transport") not in (None, transport):
        reason = f"not transport={transport}"
    if reason:
        pytest.skip(reason)
    with (mounts.Tmpfs(1024 * mounts.MIB, huge) as oracle,
          mounts.MountedRegion(64 * mounts.MIB, pool=huge, options="allow_other",
                               transport=transport) as region):
        region.mount()
        oracle.path.chmod(0o755)
        if not maps_directly(region):
            pytest.skip("no passthrough here: see daxfs doctor")
        yield str(region.path), str(oracle.path)
        region.umount()
        checked = region.fsck("-n")
        assert checked.returncode == 0, checked.stdout
        left = list((region.source / "ranges").iterdir())
        assert left == [], "ranges of files that are gone"


def maps_directly(region) -> bool:
    """Whether a store to a mapping is in the range's file at once."""
    file = region.path / "probe"
    file.write_bytes(bytes(4096))
    with open(file, "r+b") as stream, mmap.mmap(stream.fileno(), 0) as page:
        page[0] = 77
        found = any(path.read_bytes()[:1] == b"M" for path in (region.source / "ranges").iterdir())
    file.unlink()
    return found


@pytest.mark.parametrize("places", PLACES, indirect=True, scope="module")
@pytest.mark.parametrize("case", table.all_cases(kind="direct_"), ids=lambda case: case.id)
def test_mappings(case, places):
    verdict = runner.judge(case, *places)
    if verdict.status == "lacks":
        pytest.skip(str(verdict.mount.value))
    assert verdict.status == "agree", verdict.explain()
