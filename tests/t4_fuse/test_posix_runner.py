# SPDX-License-Identifier: MIT
"""The runner of the POSIX table notices what it is there to notice; needs root, no mount under test."""

import os
import signal
import time

import pytest
from test_posix import runner, table

pytestmark = pytest.mark.mount


@pytest.fixture
def pair(tmp_path):
    """Two directories to run on."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return str(tmp_path / "a"), str(tmp_path / "b")


def _judge(fn, pair, timeout=20.0, may_lack=(), compare=True):
    return runner.judge(table.Case("self", fn.__name__, fn, (), may_lack, compare), *pair, timeout)


def _place():
    return os.path.basename(os.path.dirname(os.getcwd()))


def test_equal_values_agree(pair):
    assert _judge(lambda c: (1, b"x"), pair).status == "agree"


def test_different_values_are_a_mismatch_unless_they_are_not_compared(pair):
    verdict = _judge(lambda c: _place(), pair)
    assert (verdict.status, verdict.mount.value, verdict.oracle.value) == ("mismatch", "a", "b")
    assert _judge(lambda c: _place(), pair, compare=False).status == "agree"


def test_dictated_answer_fails_on_both(pair):
    verdict = _judge(lambda c: _raise(table.CaseFailed("wrong")), pair)
    assert (verdict.status, verdict.mount.kind, verdict.oracle.kind) == ("mismatch", "failed", "failed")


def test_unexpected_errno_is_an_error(pair):
    verdict = _judge(lambda c: os.rmdir("nothing"), pair)
    assert verdict.status == "mismatch"
    assert "ENOENT" in verdict.mount.value


def test_hang_is_a_mismatch_and_its_children_end(pair):
    def hang(c):
        c.start(lambda: time.sleep(60))
        time.sleep(60)

    start = time.monotonic()
    assert _judge(hang, pair, timeout=0.3).mount.kind == "timeout"
    assert time.monotonic() - start < 10


def test_death_is_a_mismatch(pair):
    verdict = _judge(lambda c: os.kill(os.getpid(), signal.SIGKILL), pair)
    assert (verdict.status, verdict.mount.kind) == ("mismatch", "error")


def test_missing_feature_counts_only_where_it_may_be_missing(pair):
    def lack(c):
        raise table.Unsupported("no such thing")

    assert _judge(lack, pair).status == "mismatch"
    assert _judge(lack, pair, may_lack=("some-other-type",)).status == "mismatch"
    assert _judge(lack, pair, may_lack=(table.ANY,)).status == "lacks"


def test_nothing_is_left_behind(pair):
    _judge(lambda c: os.makedirs("x/y"), pair)
    assert os.listdir(pair[0]) == os.listdir(pair[1]) == []


def _raise(error):
    raise error
