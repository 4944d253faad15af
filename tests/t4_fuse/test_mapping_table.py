# SPDX-License-Identifier: MIT
"""The table in docs/mappings.md: each row of it that this host can make is looked at, cell by cell."""

import loops
import mapping_table
import mounts
import pytest
from guest import cases

MIB = mounts.MIB
HUGE = ("always", "within_size", "advise", "never")
TRANSPORTS = ("uring", "dev", "pyfuse3")
DISKS = ("ext4", "xfs")


def check(one: mounts.MountedRegion, name: str) -> None:
    rows = mapping_table.documented()
    assert mapping_table.look(one) == rows[name], name


def skip_without(transport: str) -> None:
    reason = mounts.why_no_transport(transport)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("huge, transport", [*((huge, "uring") for huge in HUGE), ("always", "dev")])
def test_pool_on_tmpfs(mount_factory, huge, transport):
    skip_without(transport)
    check(mount_factory(64 * MIB, pool=huge, transport=transport), f"pool on tmpfs huge={huge}; uring, dev")


def test_pool_without_passthrough(mount_factory):
    check(mount_factory(64 * MIB, pool="always", transport="pyfuse3"), "pool on tmpfs; pyfuse3")


@pytest.mark.parametrize("disk", DISKS)
def test_pool_on_a_disk(disk):
    skip_without("dev")
    with loops.LoopMount(disk, 1024 * MIB) as below, mounts.MountedRegion(
            64 * MIB, kind="pool", source=below.path / "pool", transport="dev") as one:
        check(one.mount(), "pool on ext4 or XFS, page cache below; uring, dev")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_file(mount_factory, transport):
    skip_without(transport)
    where = "pyfuse3" if transport == "pyfuse3" else "uring, dev"
    check(mount_factory(64 * MIB, transport=transport), f"file, device; {where}")


def test_every_row_has_a_test():
    here = {f"pool on tmpfs huge={huge}; uring, dev" for huge in HUGE} | {"pool on tmpfs; pyfuse3"}
    here |= {"pool on ext4 or XFS, page cache below; uring, dev", "file, device; uring, dev",
             "file, device; pyfuse3"}
    here |= {row for _kind, _transport, row in cases.TABLE}  # by `make test-vm`
    assert set(mapping_table.documented()) == here
