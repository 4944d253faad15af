# SPDX-License-Identifier: MIT
"""Every error is an OSError with an errno and one sentence."""

import errno
import os
import pickle

import pytest

from daxfs import errors as E

DEFAULTS = {
    E.DaxfsError: errno.EIO, E.SourceError: errno.EINVAL, E.FormatError: errno.EINVAL,
    E.CorruptError: errno.EUCLEAN, E.UsageError: errno.EINVAL, E.PoisonError: errno.EIO,
    E.PinnedError: errno.ETXTBSY,
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFAULTS)
def test_errno_and_sentence(kind):
    error = kind("what is wrong")
    assert isinstance(error, OSError) and isinstance(error, E.DaxfsError)
    assert error.errno == DEFAULTS[kind] and str(error) == "what is wrong"
    assert kind("other", errno.EBUSY).errno == errno.EBUSY and type(kind("other", errno.EBUSY)) is kind


def test_all_errors_are_here():
    found = {v for v in vars(E).values() if isinstance(v, type) and issubclass(v, OSError)}
    assert found == set(DEFAULTS)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOSPC, errno.ENOTEMPTY])
def test_fail(code):
    assert E.fail(code).errno == code and str(E.fail(code)) == os.strerror(code)
    assert str(E.fail(code, "more")) == "more" and E.fail(code, "more").errno == code


@pytest.mark.parametrize("kind", DEFAULTS)
def test_a_copy_says_the_same(kind):
    again = pickle.loads(pickle.dumps(kind("what", errno.EBUSY)))
    assert type(again) is kind and again.errno == errno.EBUSY and str(again) == "what"
