# SPDX-License-Identifier: MIT
"""One seeded stream of operations, on a mount by each transport: the trees must be the same to the byte.

The stream is tests/load.py's: its draws depend on the seed alone as long as every operation answers alike.
Compared are names, kinds, modes, link counts, which names are hard links of each other, sizes, bytes, symlink
targets and xattrs; live, after a fresh mount, and fsck.daxfs must find nothing.
"""

import dataclasses
import subprocess
import sys

import load
import mounts
import pytest
from load_model import scan

pytestmark = [pytest.mark.mount, pytest.mark.slow]
OPERATIONS = 800


def tree(root) -> dict:
    """Path to everything that must be equal; inode numbers become the first path of the inode."""
    first: dict[int, str] = {}
    found = {}
    for path, item in sorted(scan(root).items()):
        # Link counts of files and directories are compared; times come from the clock.
        found[path] = dataclasses.replace(item, ino=0, mtime_ns=0), first.setdefault(item.ino, path)
    return found


def played(transport, seed, log):
    """(live tree, tree after a fresh mount) of the stream on a new region; the judge must be content too."""
    with mounts.MountedRegion(128 * mounts.MIB, transport=transport) as region:
        region.mount()
        done = subprocess.run([sys.executable, load.__file__, "run", "--root", region.path, "--log", log,
                               "--seed", str(seed), "--ops", str(OPERATIONS)],
                              capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        live = tree(region.path)
        assert load.judge(region.path, log) == []
        region.remount()
        again = tree(region.path)
        region.umount()
        checked = region.fsck("-n")
        assert checked.returncode == 0, checked.stdout + checked.stderr
    return live, again


def difference(one, other):
    """The first paths that differ, in words."""
    return [f"{path}: {one.get(path)} and {other.get(path)}"[:2000] for path in sorted({*one, *other})
            if one.get(path) != other.get(path)][:3]


@pytest.mark.parametrize("seed", [11, 12])
def test_same_tree(seed, tmp_path, request):
    only = request.config.getoption("--transport")
    reasons = {name: mounts.why_no_transport(name) for name in mounts.TRANSPORTS}
    here = [name for name, reason in reasons.items() if not reason]
    if only or len(here) < 2:
        pytest.skip("; ".join(filter(None, reasons.values())) or f"--transport {only}: nothing to compare")
    trees = {name: played(name, seed, tmp_path / f"{name}.log") for name in here}
    first, *others = here
    assert len(trees[first][0]) > 20
    for name in here:
        assert not difference(*trees[name]), f"{name}: not the same after a fresh mount"
    for name in others:
        assert not difference(trees[first][0], trees[name][0]), f"{first} and {name}"
