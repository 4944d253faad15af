# SPDX-License-Identifier: MIT
"""Where tests of requests without a mount find regions and data paths (callkit.py); what takes long; fixtures
of tests whose files are mapped directly, or observed.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import mounts
import pytest
from observekit import MIB, SIZE, Client, Syncs

ROOT = Path(__file__).parent.parent.parent
# What these look at is behind the transport (names, ranges, flags, mappings, applications): dev does no more
# than uring there, and what the two do differently has tests of its own.
BEHIND_THE_TRANSPORT = {f"test_{name}.py" for name in (
    "apps apps_dax dax_flag fio ioctl lost_range mappings_daemon mappings_full mappings_fuzz parking "
    "poison_mount raw raw_beside revoke_mount same_tree sync_flags").split()}  # fmt: skip
sys.path[:0] = [str(Path(__file__).parent.parent / folder) for folder in ("t2_meta", "t3_data")]


def pytest_collection_modifyitems(config, items):
    """What another transport shows as well, unless --long or --transport asks for it."""
    asked = [config.getoption(name) for name in ("--long", "--transport", "--target")]
    if not any(asked) and not mounts.why_no_transport("uring"):
        for item in items:
            if _is_twice(item):
                item.add_marker("long")


@pytest.fixture(scope="module")
def ioctl_transport(transport):
    """Those that carry ioctls."""
    if transport == "pyfuse3":
        reason = "pyfuse3 has no handler for IOCTL"
        print(reason)
        pytest.skip(reason)
    return transport


@pytest.fixture(scope="module", params=["uring", "dev"])
def direct_transport(request):
    """Those by which files are mapped directly."""
    reason = mounts.why_no_direct(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module", params=["always", "never"])
def mount(request):
    """A mount of a pool directory on a tmpfs with huge pages, or without.

    By dev; by uring, where that can be, for a module that says BY_URING.
    """
    if mounts.KERNEL < (6, 11):
        pytest.skip("no PROCMAP_QUERY before kernel 6.11")
    uring = getattr(request.module, "BY_URING", False) and not mounts.why_no_transport("uring")
    with mounts.MountedRegion(64 * MIB, pool=request.param, room=256 * MIB,
                              transport="uring" if uring else "dev") as region:
        region.mount()
        region.huge = request.param == "always"
        yield region


@pytest.fixture
def path(mount, request):
    """A file on it, a hole."""
    out = mount.path / re.sub(r"\W", "_", request.node.name)
    with open(out, "wb") as file:
        file.truncate(SIZE)
    yield out
    out.unlink()


@pytest.fixture
def syncs(mount, path):
    """fsync of that file."""
    out = Syncs(mount, path)
    yield out
    os.close(out.fd)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """observe_client.c, compiled."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("observe") / "observe_client"
    mounts.run(["cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-I", ROOT,
                "-o", target, Path(__file__).with_name("observe_client.c")])
    return target


@pytest.fixture
def clients(program):
    """A function that starts one."""
    started = []

    def start() -> Client:
        started.append(Client(program))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.close()


def _is_twice(item) -> bool:
    asked = getattr(item, "callspec", None) and item.callspec.params
    if not asked:
        return False
    used = [value for value in asked.values() if value in mounts.TRANSPORTS]
    if item.path.name in BEHIND_THE_TRANSPORT and "dev" in used:
        return True
    if item.path.name == "test_apps_dax.py":  # over pyfuse3 nothing is mapped directly: test_apps.py, again
        return "pyfuse3" in used
    if item.path.name == "test_posix.py":  # its docstring says why
        return asked.get("transport") == "dev" and asked["case"].area not in item.module.OF_DATA
    if item.path.name == "test_stress.py":
        return asked.get("transport") in ("dev", "pyfuse3")
    return "shown_or_counted_as_lost" in item.name and asked["kind"] != "uring"
