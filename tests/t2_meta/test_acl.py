# SPDX-License-Identifier: MIT
"""POSIX ACLs as pure functions against known cases (acl(5), fs/posix_acl.c)."""

import errno

import pytest

from daxfs.errors import DaxfsError
from daxfs.meta import acl
from daxfs.meta.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ

MINIMAL = [(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]
FULL = [(USER_OBJ, 7, 0), (USER, 6, 1000), (GROUP_OBJ, 5, 0), (GROUP, 3, 100), (MASK, 6, 0), (OTHER, 1, 0)]
MASKED = [(USER_OBJ, 7, 0), (GROUP_OBJ, 7, 0), (MASK, 5, 0), (OTHER, 0, 0)]


def test_known_bytes():
    """What `setfacl -m u:1000:rw` writes, by hand: version 2, then tag, permission, id."""
    value = bytes.fromhex(
        "0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff"
    )
    none = 0xFFFFFFFF
    entries = [(1, 6, none), (2, 6, 1000), (4, 4, none), (16, 6, none), (32, 4, none)]
    assert acl.parse(value) == entries and acl.pack(entries) == value


@pytest.mark.parametrize("entries", [MINIMAL, FULL, MASKED, []])
def test_round_trip(entries):
    assert acl.parse(acl.pack(entries)) == entries


@pytest.mark.parametrize(
    "entries",
    [
        MINIMAL[:2],
        MINIMAL + [(OTHER, 0, 0)],
        [MINIMAL[1], MINIMAL[0], MINIMAL[2]],
        [(USER_OBJ, 6, 0), (USER, 6, 5), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)],
        [(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (GROUP, 6, 5), (OTHER, 0, 0)],
        [(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (MASK, 6, 0), (MASK, 6, 0), (OTHER, 0, 0)],
        [(USER_OBJ, 8, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)],
        [(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0), (64, 1, 0)],
    ],
)
def test_wrong_acls_are_refused(entries):
    with pytest.raises(DaxfsError) as caught:
        acl.parse(acl.pack(entries))
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    "value", [b"", b"\2\0\0", b"\1\0\0\0", b"\2\0\0\0" + bytes(7), b"\2\0\0\0" + bytes(9)]
)
def test_wrong_bytes_are_refused(value):
    with pytest.raises(DaxfsError):
        acl.parse(value)


@pytest.mark.parametrize(
    "entries, mode, plain",
    [
        (MINIMAL, 0o640, True),
        (FULL, 0o761, False),
        (MASKED, 0o750, False),
        ([(1, 0, 0), (4, 0, 0), (32, 7, 0)], 0o007, True),
    ],
)
def test_equivalent_mode(entries, mode, plain):
    assert acl.equivalent_mode(entries) == (mode, plain)


def test_chmod_changes_the_mask_and_not_the_owning_group():
    changed = acl.with_mode(FULL, 0o100124)
    assert changed == [(1, 1, 0), (2, 6, 1000), (4, 5, 0), (8, 3, 100), (16, 2, 0), (32, 4, 0)]
    assert acl.equivalent_mode(changed)[0] == 0o124
    assert acl.equivalent_mode(acl.with_mode(MINIMAL, 0o751)) == (0o751, True)


@pytest.mark.parametrize(
    "default, mode, access, result",
    [
        (MINIMAL, 0o100666, None, 0o100640),
        (MINIMAL, 0o104777, None, 0o104640),
        (FULL, 0o100640, [(1, 6, 0), (2, 6, 1000), (4, 5, 0), (8, 3, 100), (16, 4, 0), (32, 0, 0)], 0o100640),
        (MASKED, 0o040777, MASKED, 0o040750),
        (FULL, 0o100000, [(1, 0, 0), (2, 6, 1000), (4, 5, 0), (8, 3, 100), (16, 0, 0), (32, 0, 0)], 0o100000),
    ],
)
def test_inherit(default, mode, access, result):
    assert acl.inherit(default, mode) == (access, result)
