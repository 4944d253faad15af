# SPDX-License-Identifier: MIT
"""A short run of the fuzzer of serve(); tools/fuzz_serve.py makes long ones."""

import fuzzing
import pytest

from daxfs.data import _serve


@pytest.mark.parametrize("where", ["kit", "pool_kit"])
@pytest.mark.parametrize("write", ["nt", "cached"])
def test_mutated_requests_change_nothing_but_their_file(request, where, write):
    report = fuzzing.run(request.getfixturevalue(where), seed=1, count=50_000, write=write)
    assert report["done"] == 50_000 and report["wrong"] is None
    assert report["samples"] > 500
    assert set(report["verdicts"]) == set(_serve.VERDICTS) and min(report["verdicts"].values()) > 100


def test_another_seed_makes_other_messages(kit):
    reports = [fuzzing.run(kit, seed=seed, count=2000)["verdicts"] for seed in (2, 3)]
    assert reports[0] != reports[1]
    assert reports[0] == fuzzing.run(kit, seed=2, count=2000)["verdicts"]
