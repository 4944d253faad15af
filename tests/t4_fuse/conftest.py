# SPDX-License-Identifier: MIT
"""Where tests of requests without a mount find regions and data paths (callkit.py); what takes long."""

import sys
from pathlib import Path

import mounts
import pytest

sys.path[:0] = [str(Path(__file__).parent.parent / folder) for folder in ("t2_meta", "t3_data")]


def pytest_collection_modifyitems(config, items):
    """What another transport shows as well, unless --long or --transport asks for it."""
    asked = [config.getoption(name) for name in ("--long", "--transport", "--target")]
    if not any(asked) and not mounts.why_no_transport("uring"):
        for item in items:
            if _is_twice(item):
                item.add_marker("long")


@pytest.fixture(scope="module", params=["uring", "dev"])
def direct_transport(request):
    """Those by which files are mapped directly."""
    reason = mounts.why_no_direct(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


def _is_twice(item) -> bool:
    asked = getattr(item, "callspec", None) and item.callspec.params
    if not asked:
        return False
    if item.path.name == "test_posix.py":  # its docstring says why
        return asked.get("transport") == "dev" and asked["case"].area not in item.module.OF_DATA
    if item.path.name == "test_stress.py":
        return asked.get("transport") in ("dev", "pyfuse3")
    return "shown_or_counted_as_lost" in item.name and asked["kind"] != "uring"
