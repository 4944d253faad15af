# SPDX-License-Identifier: MIT
"""Fixtures of the data path's tests: regions and file systems in this process, no mount."""

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent.parent / "t2_meta"))  # regions.Maker

import datakit

settings.register_profile(
    "ci", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("ci")


@pytest.fixture
def pool_kit():
    """The same with pool directories, whose root directory hands down the DAX flag."""
    with datakit.Kit(pool=True) as made:
        yield made


@pytest.fixture
def kit():
    """`datakit.Kit`: makes regions, file systems and data paths, and takes them away after the test."""
    with datakit.Kit() as made:
        yield made
