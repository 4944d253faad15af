# SPDX-License-Identifier: MIT
"""Cases: extended attributes in the user, trusted and security name spaces."""

import os

from .context import Context, among, same
from .native import getxattr, listxattr
from .table import Unsupported, case

SPACES = ("user", "trusted", "security")
CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE
OLD_TMPFS = ("tmpfs",)  # no user.* before Linux 6.6


def _need(c: Context, space: str) -> str:
    """A probe of the name space; the value is the prefix with its dot."""
    name = c.file()
    try:
        os.setxattr(name, f"{space}.probe", b"")
    except OSError as error:
        raise Unsupported(f"{space} xattrs: {error.strerror}") from error
    return f"{space}."


@case("xattr", SPACES, may_lack=OLD_TMPFS)
def set_get_list_remove(c: Context, space: str):
    prefix = _need(c, space)
    name = c.file()
    os.setxattr(name, prefix + "one", b"1")
    os.setxattr(name, prefix + "two", b"\0binary\xff")
    got = [os.getxattr(name, prefix + "one"), os.getxattr(name, prefix + "two"), sorted(os.listxattr(name))]
    os.removexattr(name, prefix + "one")
    got += [sorted(os.listxattr(name)), c.errno_of(os.getxattr, name, prefix + "one")]
    return same(got, [b"1", b"\0binary\xff", [prefix + "one", prefix + "two"], [prefix + "two"], "ENODATA"])


@case("xattr", SPACES, may_lack=OLD_TMPFS)
def create_and_replace(c: Context, space: str):
    """XATTR_CREATE wants it absent, XATTR_REPLACE present, both at once or neither."""
    key, name = _need(c, space) + "k", c.file()
    got = [
        c.errno_of(os.setxattr, name, key, b"1", REPLACE),
        c.errno_of(os.setxattr, name, key, b"2", CREATE),
        c.errno_of(os.setxattr, name, key, b"3", CREATE),
        c.errno_of(os.setxattr, name, key, b"4", REPLACE),
        os.getxattr(name, key),
        c.errno_of(os.setxattr, name, key, b"5", 8),
    ]
    return same(got, ["ENODATA", "OK", "EEXIST", "OK", b"4", "EINVAL"])


@case("xattr", SPACES, may_lack=OLD_TMPFS)
def missing(c: Context, space: str):
    key, name = _need(c, space) + "none", c.file()
    return same([c.errno_of(f, name, key) for f in (os.getxattr, os.removexattr)], ["ENODATA"] * 2)


@case("xattr", SPACES, may_lack=OLD_TMPFS)
def lengths_and_erange(c: Context, space: str):
    """Size 0 asks for the length; too little room is ERANGE, for the value and for the list."""
    key, name = _need(c, space) + "k", c.file()
    os.setxattr(name, key, b"x" * 100)
    size = len(key) + 1
    got = [
        getxattr(name, key, 0),
        c.errno_of(getxattr, name, key, 99),
        getxattr(name, key, 100),
        getxattr(name, key, 999),
    ]
    got += [listxattr(name, 0), c.errno_of(listxattr, name, size - 1), listxattr(name, size)]
    return same(got, [100, "ERANGE", 100, 100, size, "ERANGE", size])


@case(
    "xattr",
    {f"{s}_{n}": (s, n) for s in SPACES for n in (0, 1, 7, 8, 63, 64, 255, 256, 1000, 2000, 3000)},
    may_lack=OLD_TMPFS,
)
def size_kept(c: Context, space: str, size: int):
    """Values up to 3000 bytes are taken by every file system."""
    key, name = _need(c, space) + "k", c.file()
    value = bytes(i * 3 % 256 for i in range(size))
    os.setxattr(name, key, value)
    return same(os.getxattr(name, key) == value, True)


@case("xattr", (4000, 4096, 8192, 32768, 65535, 65536), may_lack=OLD_TMPFS, compare=False)
def size_large(c: Context, size: int):
    """Larger values are taken whole or refused with ENOSPC or E2BIG, which leaves the old value."""
    name = c.file()
    os.setxattr(name, "trusted.k", b"old")
    result = c.errno_of(os.setxattr, name, "trusted.k", b"v" * size)
    among(result, ("OK", "ENOSPC", "E2BIG"))
    same(os.getxattr(name, "trusted.k") == (b"v" * size if result == "OK" else b"old"), True)


@case("xattr")
def size_over_the_limit(c: Context):
    """65,537 bytes are more than Linux takes."""
    name = c.file()
    return same((c.errno_of(os.setxattr, name, "trusted.k", b"v" * 65537), os.listxattr(name)), ("E2BIG", []))


@case("xattr", (1, 100, 247))
def name_length_ok(c: Context, length: int):
    key, name = "trusted." + "n" * length, c.file()
    os.setxattr(name, key, b"v")
    return same((os.getxattr(name, key), os.listxattr(name)), (b"v", [key]))


@case("xattr")
def bad_names(c: Context):
    """255 bytes with the prefix; an unknown or missing prefix is EOPNOTSUPP; an empty rest EINVAL."""
    name = c.file()
    keys = ("trusted." + "n" * 248, "nosuch.space", "plain", "trusted.", "")
    got = [c.errno_of(os.setxattr, name, key, b"v") for key in keys]
    same([got[i] for i in (0, 1, 2, 4)], ["ERANGE", "EOPNOTSUPP", "EOPNOTSUPP", "ERANGE"])
    among(got[3], ("EINVAL", "EOPNOTSUPP"))
    return got[:3], os.listxattr(name)


@case("xattr")
def bytes_in_names(c: Context):
    name, keys = (
        c.file(),
        ["trusted.ключ", "trusted.a b", "trusted.=", "trusted.x.y.z", "trusted.A", "trusted.a"],
    )
    for key in keys:
        os.setxattr(name, key, key.encode())
    return same(
        (sorted(os.listxattr(name)) == sorted(keys), all(os.getxattr(name, k) == k.encode() for k in keys)),
        (True, True),
    )


@case("xattr", ("file", "dir", "symlink", "fifo", "sock", "chr"))
def trusted_on_kind(c: Context, kind: str):
    name = c.thing(kind)
    os.setxattr(name, "trusted.k", kind.encode(), follow_symlinks=False)
    return same(os.getxattr(name, "trusted.k", follow_symlinks=False), kind.encode())


@case("xattr", ("file", "dir", "symlink", "fifo", "sock", "chr"), may_lack=OLD_TMPFS)
def user_on_kind(c: Context, kind: str):
    """user.* belongs on files and directories alone."""
    _need(c, "user")
    name = c.thing(kind)
    calls = [
        c.errno_of(os.setxattr, name, "user.k", b"v", follow_symlinks=False),
        c.errno_of(os.getxattr, name, "user.k", follow_symlinks=False),
        c.errno_of(os.removexattr, name, "user.k", follow_symlinks=False),
    ]
    return same(calls, ["OK"] * 3 if kind in ("file", "dir") else ["EPERM", "ENODATA", "EPERM"])


@case("xattr")
def trusted_without_privilege(c: Context):
    """trusted.* is invisible to uid 65534, and EPERM to set."""
    name = c.file(b"", 0o777)
    os.chown(name, 65534, 65534)
    os.setxattr(name, "trusted.k", b"v")
    got = [
        c.as_nobody(lambda: os.getxattr(name, "trusted.k")),
        c.as_nobody(lambda: os.setxattr(name, "trusted.k", b"w")),
        c.as_nobody(lambda: os.removexattr(name, "trusted.k")),
        c.as_nobody(lambda: [k for k in os.listxattr(name) if not k.startswith("trusted.")]),
    ]
    return same((got, os.getxattr(name, "trusted.k")), (["ENODATA", "EPERM", "EPERM", []], b"v"))


@case("xattr")
def security_without_privilege(c: Context):
    """Anybody reads security.*, only CAP_SYS_ADMIN sets it."""
    name = c.file(b"", 0o777)
    os.setxattr(name, "security.k", b"v")
    got = [
        c.as_nobody(lambda: os.getxattr(name, "security.k")),
        c.as_nobody(lambda: os.setxattr(name, "security.k", b"w")),
    ]
    return same(got, [b"v", "EPERM"])


@case("xattr", may_lack=OLD_TMPFS)
def user_permissions(c: Context):
    """user.* follows the mode: read to get, write to set; in a sticky directory only the owner sets."""
    _need(c, "user")
    got = []
    for mode in (0o600, 0o604, 0o602, 0o606):
        name = c.file(b"", mode)
        os.setxattr(name, "user.k", b"v")
        got.append(
            (
                c.as_nobody(lambda n=name: os.getxattr(n, "user.k")),
                c.as_nobody(lambda n=name: os.setxattr(n, "user.k", b"w")),
            )
        )
    sticky = c.dir(0o1777)
    got.append(c.as_nobody(lambda: os.setxattr(sticky, "user.k", b"w")))
    return same(got, [("EACCES", "EACCES"), (b"v", "EACCES"), ("EACCES", None), (b"v", None), "EPERM"])


@case("xattr", compare=False)
def many(c: Context):
    """40 attributes of 40 bytes on one file, then half of them removed."""
    name = c.file()
    keys = [f"trusted.attribute{i}" for i in range(40)]
    for i, key in enumerate(keys):
        os.setxattr(name, key, bytes([i]) * 40)
    for key in keys[::2]:
        os.removexattr(name, key)
    same(sorted(os.listxattr(name)), sorted(keys[1::2]))
    same(all(os.getxattr(name, k) == bytes([i]) * 40 for i, k in enumerate(keys) if i % 2), True)


@case("xattr")
def grow_and_shrink(c: Context):
    """One value goes through many sizes next to a neighbour that stays."""
    name = c.file()
    os.setxattr(name, "trusted.stays", b"neighbour" * 20)
    good = []
    for size in (1, 100, 2000, 3, 1500, 0, 2500, 64):
        os.setxattr(name, "trusted.k", b"z" * size)
        good.append(
            len(os.getxattr(name, "trusted.k")) == size
            and os.getxattr(name, "trusted.stays") == b"neighbour" * 20
        )
    return same(all(good), True)


@case("xattr")
def follows_the_inode(c: Context):
    """Attributes go along with rename and hard links, not with symlinks or a new file of the name."""
    name = c.file()
    os.setxattr(name, "trusted.k", b"v")
    os.link(name, "hard")
    os.symlink(name, "soft")
    os.rename(name, "moved")
    got = [
        os.getxattr("moved", "trusted.k"),
        os.getxattr("hard", "trusted.k"),
        c.errno_of(os.getxattr, "soft", "trusted.k", follow_symlinks=False),
    ]
    os.unlink("hard")
    with open("hard", "w"):
        pass
    return same((got, os.listxattr("hard")), ([b"v", b"v", "ENODATA"], []))


@case("xattr")
def through_descriptor_of_unlinked(c: Context):
    name = c.file()
    with c.open(name, os.O_RDONLY) as fd:
        os.setxattr(fd, "trusted.a", b"1")
        os.unlink(name)
        os.setxattr(fd, "trusted.b", b"2")
        return same(
            (sorted(os.listxattr(fd)), os.getxattr(fd, "trusted.a")), (["trusted.a", "trusted.b"], b"1")
        )


@case("xattr")
def data_and_mode_stay(c: Context):
    name = c.file(b"contents", 0o640)
    os.setxattr(name, "trusted.k", b"v" * 1000)
    s = os.stat(name)
    return same((c.data(name), c.mode(name), s.st_size), (b"contents", "0640", 8))


@case("xattr", may_lack=("tmpfs",))
def capability_cleared_by_write(c: Context):
    """security.capability goes when the file's data change (without CAP_FSETID, or at all)."""
    name = c.file(b"data", 0o777)
    caps = bytes.fromhex("0100000200040000000000000000000000000000")
    try:
        os.setxattr(name, "security.capability", caps)
    except OSError as error:
        raise Unsupported(f"security.capability: {error.strerror}") from error
    before = "security.capability" in os.listxattr(name)
    c.as_nobody(lambda: os.write(os.open(name, os.O_WRONLY), b"x"))
    return same((before, "security.capability" in os.listxattr(name)), (True, False))
