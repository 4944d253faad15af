# SPDX-License-Identifier: MIT
"""Cases: POSIX access control lists, set and read as the binary attributes that setfacl uses."""

import os
import shutil
import stat
import struct
import subprocess

from .context import NOBODY, Context, same
from .table import ANY, Unsupported, case

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
TAGS = {"u:": 0x01, "u": 0x02, "g:": 0x04, "g": 0x08, "m": 0x10, "o": 0x20}
NO_ID = 2**32 - 1
FRIEND = 4100


def pack(*entries: tuple[str, int, int]) -> bytes:
    """(tag, permissions, id) into version 2 of the attribute, sorted as the kernel wants it."""
    rows = sorted((TAGS[tag], ident, perm) for tag, perm, ident in entries)
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, perm, ident) for tag, ident, perm in rows)


def unpack(blob: bytes) -> list[tuple[str, int, int]]:
    names = {number: name for name, number in TAGS.items()}
    rows = (struct.unpack_from("<HHI", blob, at) for at in range(4, len(blob), 8))
    return [(names[tag], perm, ident) for tag, perm, ident in rows]


def base(user: int, group: int, other: int, *more: tuple[str, int, int]) -> bytes:
    return pack(("u:", user, NO_ID), ("g:", group, NO_ID), ("o", other, NO_ID), *more)


def _acl(path: str, name: str = ACCESS):
    try:
        return unpack(os.getxattr(path, name))
    except OSError as error:
        return os.strerror(error.errno)


def _set(path: str, name: str, blob: bytes) -> None:
    try:
        os.setxattr(path, name, blob)
    except OSError as error:
        if error.strerror == "Operation not supported":
            raise Unsupported("POSIX ACLs") from error
        raise


NAMED = base(6, 4, 0, ("u", 6, FRIEND), ("m", 6, NO_ID))


@case("acl")
def none_at_first(c: Context):
    name, top = c.file(), c.dir()
    return same(
        [c.errno_of(os.getxattr, p, a) for p in (name, top) for a in (ACCESS, DEFAULT)], ["ENODATA"] * 4
    )


@case("acl")
def named_user_set_and_read(c: Context):
    """What was set comes back; the group bits of the mode show the mask."""
    name = c.file()
    _set(name, ACCESS, NAMED)
    return same((_acl(name), c.mode(name), os.getxattr(name, ACCESS) == NAMED), (unpack(NAMED), "0660", True))


@case("acl")
def minimal_is_the_mode(c: Context):
    """Three entries are just the mode and are not kept as an attribute."""
    name = c.file()
    _set(name, ACCESS, base(7, 5, 1))
    return same((c.mode(name), c.errno_of(os.getxattr, name, ACCESS)), ("0751", "ENODATA"))


@case("acl")
def listed_as_attribute(c: Context):
    name, top = c.file(), c.dir()
    _set(name, ACCESS, NAMED)
    _set(top, DEFAULT, base(7, 5, 0))
    return same(
        ([k for k in os.listxattr(name) if "acl" in k], [k for k in os.listxattr(top) if "acl" in k]),
        ([ACCESS], [DEFAULT]),
    )


@case("acl")
def chmod_changes_the_mask(c: Context):
    name = c.file()
    _set(name, ACCESS, NAMED)
    os.chmod(name, 0o751)
    want = [("u:", 7, NO_ID), ("u", 6, FRIEND), ("g:", 4, NO_ID), ("m", 5, NO_ID), ("o", 1, NO_ID)]
    return same((_acl(name), c.mode(name)), (want, "0751"))


@case("acl")
def removing_leaves_the_mode(c: Context):
    name = c.file()
    _set(name, ACCESS, NAMED)
    os.removexattr(name, ACCESS)
    return c.errno_of(os.getxattr, name, ACCESS), c.mode(name)


@case("acl")
def setting_by_others(c: Context):
    """Only the owner (or CAP_FOWNER) sets an ACL; everybody who reaches the file reads it."""
    name = c.file(b"", 0o777)
    _set(name, ACCESS, NAMED)
    got = [
        c.as_nobody(lambda: os.setxattr(name, ACCESS, base(7, 7, 7))),
        c.as_nobody(lambda: os.removexattr(name, ACCESS)),
    ]
    got.append(c.as_nobody(lambda: os.getxattr(name, ACCESS) == NAMED))
    os.chown(name, NOBODY, NOBODY)
    got.append(c.as_nobody(lambda: os.setxattr(name, ACCESS, base(6, 0, 0))))
    return same((got, c.mode(name)), (["EPERM", "EPERM", True, None], "0600"))


BROKEN = {
    "no_mask": base(6, 4, 0, ("u", 6, FRIEND)),
    "short": NAMED[:-1],
    "version": b"\x03" + NAMED[1:],
    "bits": base(6, 4, 0, ("u", 15, FRIEND), ("m", 6, NO_ID)),
    "unsorted": NAMED[:4] + NAMED[-8:] + NAMED[4:-8],
    "no_owner": pack(("g:", 4, NO_ID), ("o", 0, NO_ID)),
}


@case("acl", BROKEN)
def broken_is_refused(c: Context, blob: bytes):
    name = c.file()
    _set(name, ACCESS, NAMED)
    result = c.errno_of(os.setxattr, name, ACCESS, blob)
    same(result != "OK", True)
    return result, _acl(name) == unpack(NAMED), c.mode(name)


@case("acl")
def default_on_file(c: Context):
    """A default ACL belongs to directories; symlinks have none."""
    name = c.file()
    os.symlink(name, "link")
    got = [
        c.errno_of(os.setxattr, name, DEFAULT, base(7, 5, 0)),
        c.errno_of(os.setxattr, "link", ACCESS, NAMED, follow_symlinks=False),
    ]
    return same(got, ["EACCES", "EOPNOTSUPP"])


# effect

GRANTS = {
    "named_user": (FRIEND, 9, (), ("u", 6, FRIEND), 6, True),
    "named_user_masked": (FRIEND, 9, (), ("u", 6, FRIEND), 4, False),
    "named_user_denied": (FRIEND, 9, (), ("u", 0, FRIEND), 7, False),
    "named_group": (9, 9, (FRIEND,), ("g", 6, FRIEND), 6, True),
    "named_group_primary": (9, FRIEND, (), ("g", 6, FRIEND), 6, True),
    "named_group_masked": (9, 9, (FRIEND,), ("g", 6, FRIEND), 4, False),
    "stranger": (9, 9, (), ("u", 6, FRIEND), 6, False),
}


@case("acl", GRANTS)
def effect_on_file(c: Context, uid: int, gid: int, groups: tuple, entry: tuple, mask: int, allowed: bool):
    """Opening for reading and writing through one named entry and a mask; others have nothing."""
    name = c.file()
    _set(name, ACCESS, base(6, 0, 0, entry, ("m", mask, NO_ID)))
    got = c.run_as(uid, gid, lambda: os.close(os.open(name, os.O_RDWR)), groups)
    return same(got, None if allowed else "EACCES")


@case("acl")
def named_user_before_other(c: Context):
    """The named user's entry counts even where others have more."""
    name = c.file()
    _set(name, ACCESS, base(6, 6, 6, ("u", 0, FRIEND), ("m", 6, NO_ID)))
    return same([c.run_as(u, 9, lambda: os.access(name, os.R_OK)) for u in (FRIEND, 9)], [False, True])


@case("acl")
def owner_is_not_masked(c: Context):
    name = c.file()
    os.chown(name, NOBODY, 0)
    _set(name, ACCESS, base(6, 6, 0, ("u", 6, FRIEND), ("m", 0, NO_ID)))
    got = [
        c.as_nobody(lambda: os.access(name, os.W_OK)),
        c.run_as(FRIEND, 9, lambda: os.access(name, os.W_OK)),
        c.run_as(9, 0, lambda: os.access(name, os.R_OK)),
    ]
    return same(got, [True, False, False])


@case("acl")
def effect_on_directory(c: Context):
    """Search, list and make names through a named user entry."""
    top = c.dir(0o700)
    os.mkdir(f"{top}/x")
    _set(top, ACCESS, base(7, 0, 0, ("u", 7, FRIEND), ("m", 7, NO_ID)))
    do = lambda uid: c.run_as(uid, 9, lambda: (os.listdir(top), os.mkdir(f"{top}/y")))  # noqa: E731
    return same((do(9), do(FRIEND), os.path.isdir(f"{top}/y")), ("EACCES", (["x"], None), True))


@case("acl")
def effect_ends_with_removal(c: Context):
    """An entry that is taken away stops counting at once, also after it had been used."""
    name = c.file(b"", 0o600)
    _set(name, ACCESS, NAMED)
    look = lambda: c.run_as(FRIEND, 9, lambda: os.access(name, os.R_OK))  # noqa: E731
    first = look()
    os.setxattr(name, ACCESS, base(6, 0, 0))
    return same((first, look()), (True, False))


# inheritance

MODES = {f"{m:04o}_umask_{u:03o}": (m, u) for m in (0o666, 0o600, 0o777) for u in (0o022, 0o077)}
HANDED_DOWN = base(7, 5, 1, ("u", 7, FRIEND), ("m", 7, NO_ID))


@case("acl_default", MODES)
def new_file_inherits(c: Context, mode: int, umask: int):
    """A file gets the default ACL cut down by the mode that was asked for; the umask does not count."""
    top = c.dir()
    _set(top, DEFAULT, HANDED_DOWN)
    os.umask(umask)
    os.close(os.open(f"{top}/x", os.O_CREAT | os.O_WRONLY, mode))
    group = mode >> 3 & 7
    want = [
        ("u:", 7 & mode >> 6, NO_ID),
        ("u", 7, FRIEND),
        ("g:", 5, NO_ID),
        ("m", 7 & group, NO_ID),
        ("o", 1 & mode, NO_ID),
    ]
    return same((_acl(f"{top}/x"), c.errno_of(os.getxattr, f"{top}/x", DEFAULT)), (want, "ENODATA")), c.mode(
        f"{top}/x"
    )


@case("acl_default", MODES)
def new_directory_inherits(c: Context, mode: int, umask: int):
    """A directory gets it as access ACL, cut down, and as default ACL, whole."""
    top = c.dir()
    _set(top, DEFAULT, HANDED_DOWN)
    os.umask(umask)
    os.mkdir(f"{top}/x", mode)
    same(_acl(f"{top}/x", DEFAULT), unpack(HANDED_DOWN))
    return _acl(f"{top}/x"), c.mode(f"{top}/x")


@case("acl_default", MODES)
def minimal_default_beats_umask(c: Context, mode: int, umask: int):
    """A default ACL of three entries gives a mode, without umask and without an access ACL."""
    top = c.dir()
    _set(top, DEFAULT, base(7, 6, 4))
    os.umask(umask)
    os.close(os.open(f"{top}/x", os.O_CREAT | os.O_WRONLY, mode))
    return same(
        (c.mode(f"{top}/x"), c.errno_of(os.getxattr, f"{top}/x", ACCESS)), (f"{mode & 0o764:04o}", "ENODATA")
    )


@case("acl_default", {"fifo": stat.S_IFIFO, "sock": stat.S_IFSOCK, "chr": stat.S_IFCHR})
def new_node_inherits(c: Context, fmt: int):
    top = c.dir()
    _set(top, DEFAULT, HANDED_DOWN)
    os.mknod(f"{top}/x", fmt | 0o660, os.makedev(1, 3) if fmt == stat.S_IFCHR else 0)
    want = [("u:", 6, NO_ID), ("u", 7, FRIEND), ("g:", 5, NO_ID), ("m", 6, NO_ID), ("o", 0, NO_ID)]
    return same((_acl(f"{top}/x"), c.mode(f"{top}/x")), (want, "0660"))


@case("acl_default")
def new_symlink_does_not(c: Context):
    top = c.dir()
    _set(top, DEFAULT, HANDED_DOWN)
    os.symlink("x", f"{top}/l")
    return same(c.mode(f"{top}/l"), "0777")


@case("acl_default")
def rename_and_link_do_not(c: Context):
    top, name = c.dir(), c.file()
    _set(top, DEFAULT, HANDED_DOWN)
    os.link(name, f"{top}/l")
    os.rename(name, f"{top}/r")
    return same((c.errno_of(os.getxattr, f"{top}/r", ACCESS), c.mode(f"{top}/l")), ("ENODATA", "0644"))


@case("acl_default")
def default_does_not_guard_the_directory(c: Context):
    """A default ACL alone leaves mode and access of the directory itself as they were."""
    top = c.dir(0o700)
    _set(top, DEFAULT, base(7, 7, 7, ("u", 7, FRIEND), ("m", 7, NO_ID)))
    return same((c.mode(top), c.run_as(FRIEND, 9, lambda: os.listdir(top))), ("0700", "EACCES"))


@case("acl_default")
def default_removed(c: Context):
    top = c.dir()
    _set(top, DEFAULT, HANDED_DOWN)
    os.removexattr(top, DEFAULT)
    os.mkdir(f"{top}/x", 0o777)
    return same((c.mode(f"{top}/x"), c.errno_of(os.getxattr, f"{top}/x", ACCESS)), ("0755", "ENODATA"))


@case("acl_default")
def three_levels_down(c: Context):
    top = c.dir()
    _set(top, DEFAULT, HANDED_DOWN)
    os.makedirs(f"{top}/a/b")
    with open(f"{top}/a/b/f", "w"):
        pass
    can = c.run_as(FRIEND, 9, lambda: os.access(f"{top}/a/b/f", os.W_OK))
    return same((_acl(f"{top}/a/b", DEFAULT), can), (unpack(HANDED_DOWN), True))


@case("acl", may_lack=(ANY,))
def setfacl_and_getfacl(c: Context):
    """The tools agree with the attributes."""
    if not shutil.which("setfacl"):
        raise Unsupported("no setfacl on this host")
    name = c.file(b"", 0o640)
    subprocess.run(["setfacl", "-m", f"u:{FRIEND}:rw", name], check=True)
    shown = subprocess.run(
        ["getfacl", "-nc", name], check=True, capture_output=True, text=True
    ).stdout.split()
    want = ["user::rw-", f"user:{FRIEND}:rw-", "group::r--", "mask::rw-", "other::---"]
    return same((shown, unpack(NAMED) == _acl(name)), (want, True))


@case("acl", {"member": (NOBODY,), "stranger": (9,)})
def setgid_dropped_with_the_acl(c: Context, group: int):
    """An owner who is not in the file's group loses setgid when he sets an access ACL."""
    name = c.file()
    os.chown(name, NOBODY, group)
    os.chmod(name, 0o2755)
    result = c.as_nobody(lambda: os.setxattr(name, ACCESS, base(7, 5, 5, ("u", 6, FRIEND), ("m", 7, NO_ID))))
    return same((result, c.mode(name)), (None, "2775" if group == NOBODY else "0775"))
