# SPDX-License-Identifier: MIT
"""POSIX ACLs in their xattr form: the mode bits they imply, chmod, inheritance. Pure functions.

The kernel checks permissions (it reads these xattrs); what is left to a file
system is to keep mode and ACL in step (fs/posix_acl.c is the model).
"""

import errno
import struct

from ..errors import fail

_HEAD = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_VERSION = 2
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
_ORDER = {USER_OBJ: 0, USER: 1, GROUP_OBJ: 2, GROUP: 3, MASK: 4, OTHER: 5}


def parse(value: bytes) -> list[tuple[int, int, int]]:
    """Entries (tag, permission, id) of an ACL xattr. EINVAL where it is none that may be set."""
    if len(value) < 4 or (len(value) - 4) % 8 or _HEAD.unpack_from(value)[0] != _VERSION:
        raise fail(errno.EINVAL)
    entries = [_ENTRY.unpack_from(value, at) for at in range(4, len(value), 8)]
    tags = [tag for tag, _, _ in entries]
    order = [_ORDER.get(tag, -1) for tag in tags]
    if entries and (
        -1 in order
        or order != sorted(order)
        or any(tags.count(tag) != 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER))
        or tags.count(MASK) > 1
        or (MASK not in tags and (USER in tags or GROUP in tags))
        or any(perm & ~7 for _, perm, _ in entries)
    ):
        raise fail(errno.EINVAL)
    return entries


def pack(entries) -> bytes:
    """The xattr value of *entries*."""
    return _HEAD.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def equivalent_mode(entries) -> tuple[int, bool]:
    """(the nine mode bits of an access ACL, whether they say all of it)."""
    mode, plain = 0, True
    mask = None
    for tag, perm, _ in entries:
        if tag == USER_OBJ:
            mode |= perm << 6
        elif tag == GROUP_OBJ:
            mode |= perm << 3
        elif tag == OTHER:
            mode |= perm
        else:
            plain = False
            mask = perm if tag == MASK else mask
    if mask is not None:
        mode = mode & ~0o070 | mask << 3
    return mode, plain


def with_mode(entries, mode: int) -> list[tuple[int, int, int]]:
    """The ACL after chmod to *mode*: owner, other, and the mask (the owning group where there is none)."""
    group = MASK if any(tag == MASK for tag, _, _ in entries) else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
    return [(tag, bits.get(tag, perm), who) for tag, perm, who in entries]


def inherit(default, mode: int) -> tuple[list[tuple[int, int, int]] | None, int]:
    """(access ACL or None where the mode says all, mode) of a new file under a default ACL."""
    group = MASK if any(tag == MASK for tag, _, _ in default) else GROUP_OBJ
    shift = {USER_OBJ: 6, group: 3, OTHER: 0}
    access = [
        (tag, perm & mode >> shift[tag] & 7 if tag in shift else perm, who) for tag, perm, who in default
    ]
    bits, plain = equivalent_mode(access)
    return (None if plain else access), mode & ~0o777 | bits
