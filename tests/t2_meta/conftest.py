# SPDX-License-Identifier: MIT
"""Fixtures of the metadata tests: small file systems on /dev/shm, and copies as a crash leaves them.

Limits: no mount, no FUSE; what is made here is removed here.
"""

import os

import pytest
import regions
from hypothesis import HealthCheck, Phase, settings

# DAXFS_HYPOTHESIS=hunt looks for new failures at random and does not shrink them.
_COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", derandomize=True, phases=(Phase.generate, Phase.shrink), **_COMMON)
settings.register_profile("ci-noshrink", derandomize=True, phases=(Phase.generate,), **_COMMON)
settings.register_profile("hunt", phases=(Phase.generate,), print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("DAXFS_HYPOTHESIS", "ci"))


@pytest.fixture
def maker():
    """`regions.Maker`: makes file systems and crash copies, and takes them away after the test."""
    with regions.Maker() as made:
        yield made


@pytest.fixture
def small_fs(maker):
    """A mounted file system on a region of 16 MiB."""
    return maker.make()


@pytest.fixture
def fsck(maker):
    """fsck(fs): fsck.daxfs finds nothing wrong in the region's bytes as they are now."""
    return maker.fsck


@pytest.fixture
def crash_copy(maker):
    """crash_copy(fs): a FileSystem mounted on a copy of the region's bytes as they are now."""
    return maker.crash_copy
