# SPDX-License-Identifier: MIT
"""Cases: time stamps in ns, and which operation moves which of them."""

import mmap
import os
import stat
import time
from collections.abc import Callable

from .context import NOBODY, Context, among, same
from .native import UTIME_NOW, UTIME_OMIT, renameat2, utimensat
from .table import ANY, Unsupported, case

NS = 10**9

# utimensat


@case(
    "utimens",
    {
        "epoch": (0, 0),
        "one_ns": (0, 1),
        "odd": (1234567890, 123456789),
        "last_ns": (1, 999_999_999),
        "y2033": (2_000_000_000, 7),
        "y2038": (2**31, 5),
        "y2106": (2**32 - 1, 3),
        "y2200": (7_258_118_400, 987_654_321),
    },
)
def set_exact(c: Context, seconds: int, nanoseconds: int):
    """Times are kept to the ns, from the epoch to the year 2200."""
    got = []
    for kind in ("file", "dir", "fifo"):
        name = c.thing(kind)
        utimensat(name, (seconds, nanoseconds), (seconds, nanoseconds // 2))
        s = os.stat(name)
        got.append((s.st_atime_ns, s.st_mtime_ns))
    return same(got, [(seconds * NS + nanoseconds, seconds * NS + nanoseconds // 2)] * 3)


@case(
    "utimens",
    {"minus_one": (-1, 0), "half": (-1, 500_000_000), "y1950": (-631_152_000, 1), "y1901": (-(2**31), 0)},
)
def set_before_epoch(c: Context, seconds: int, nanoseconds: int):
    """Negative times are kept too."""
    name = c.file()
    utimensat(name, (seconds, nanoseconds), (seconds, nanoseconds))
    s = os.stat(name)
    return same((s.st_atime_ns, s.st_mtime_ns), (seconds * NS + nanoseconds,) * 2)


@case("utimens")
def far_future_is_kept_or_clamped(c: Context):
    """The year 2446 and later: kept, or clamped to what the format can say, never wrapped around."""
    name = c.file()
    utimensat(name, (20_000_000_000, 0), (20_000_000_000, 0))
    return same(os.stat(name).st_mtime >= 7_258_118_400, True)


@case("utimens")
def now_is_now(c: Context):
    name = c.file()
    os.utime(name, ns=(0, 0))
    before = time.time_ns()
    utimensat(name, (0, UTIME_NOW), (0, UTIME_NOW))
    s = os.stat(name)
    after = time.time_ns()
    inside = all(before - NS // 50 <= t <= after + NS // 50 for t in (s.st_atime_ns, s.st_mtime_ns))
    return same(inside, True)


@case("utimens", {"omit_a": (True, False), "omit_m": (False, True), "omit_both": (True, True)})
def omit(c: Context, keep_a: bool, keep_m: bool):
    """UTIME_OMIT leaves one time alone; with both nothing happens at all."""
    name = c.file()
    os.utime(name, ns=(11, 22))
    new_a, new_m = ((0, UTIME_OMIT if keep else 99) for keep in (keep_a, keep_m))
    moved = c.changed(name, lambda: utimensat(name, new_a, new_m))
    s = os.stat(name)
    same((s.st_atime_ns, s.st_mtime_ns), (11 if keep_a else 99, 22 if keep_m else 99))
    return same("c" in moved, not (keep_a and keep_m))


@case("utimens")
def now_and_omit(c: Context):
    name = c.file()
    os.utime(name, ns=(11, 22))
    utimensat(name, (0, UTIME_NOW), (0, UTIME_OMIT))
    s = os.stat(name)
    return same((s.st_atime_ns > NS, s.st_mtime_ns), (True, 22))


@case("utimens")
def bad_nanoseconds(c: Context):
    name = c.file()
    return same([c.errno_of(utimensat, name, (0, n), (0, 0)) for n in (NS, -1)], ["EINVAL"] * 2)


@case("utimens")
def who_may(c: Context):
    """Others: "now" with write permission, else EACCES; a given time is for the owner, else EPERM."""
    writable, readable, own = c.file(b"", 0o666), c.file(b"", 0o644), c.file(b"", 0o400)
    os.chown(own, NOBODY, NOBODY)
    now, given, mixed = (0, UTIME_NOW), (5, 5), (0, UTIME_OMIT)
    got = [
        c.as_nobody(lambda n=n, a=a, m=m: utimensat(n, a, m))
        for n in (writable, readable, own)
        for a, m in ((now, now), (given, given), (now, mixed))
    ]
    return same(got, [None, "EPERM", "EPERM", "EACCES", "EPERM", "EPERM", None, None, None])


@case("utimens")
def symlink_alone(c: Context):
    os.symlink("nowhere", "link")
    utimensat("link", (3, 4), (5, 6), follow=False)
    s = os.lstat("link")
    return same(
        (s.st_atime_ns, s.st_mtime_ns, c.errno_of(utimensat, "link", (0, 0), (0, 0))),
        (3 * NS + 4, 5 * NS + 6, "ENOENT"),
    )


@case("utimens")
def through_descriptor(c: Context):
    with c.open(c.file(), os.O_RDONLY) as fd:
        os.utime(fd, ns=(123, 456))
        s = os.fstat(fd)
    return same((s.st_atime_ns, s.st_mtime_ns), (123, 456))


@case("utimens")
def order_of_creation(c: Context):
    """A later file has later times; all three are alike when a file is made; none lies in the future."""
    first = os.stat(c.file())
    c.tick()
    name = c.path()
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    second = os.stat(name)
    same(second.st_atime_ns == second.st_mtime_ns == second.st_ctime_ns, True, "equal at creation")
    return same(
        (second.st_mtime_ns > first.st_mtime_ns, second.st_mtime_ns <= time.time_ns() + NS // 50),
        (True, True),
    )


# what moves on the object itself

Setup = tuple[str, Callable[[str], object], str]


def _open_do(flags: int, work: Callable[[int], object]) -> Callable[[str], object]:
    def run(path: str) -> object:
        fd = os.open(path, flags)
        try:
            return work(fd)
        finally:
            os.close(fd)

    return run


def _store_through_mapping(fd: int) -> None:
    page = mmap.mmap(fd, 3)
    page[0] = 33
    page.flush()
    page.close()


ON_FILE: dict[str, tuple[Callable[[str], object], str]] = {
    "write": (_open_do(os.O_WRONLY, lambda fd: os.write(fd, b"new")), "mc"),
    "append": (_open_do(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"new")), "mc"),
    "writev": (_open_do(os.O_WRONLY, lambda fd: os.writev(fd, [b"a", b"b"])), "mc"),
    "truncate_up": (lambda p: os.truncate(p, 100), "mc"),
    "truncate_down": (lambda p: os.truncate(p, 1), "mc"),
    "open_trunc": (lambda p: os.close(os.open(p, os.O_WRONLY | os.O_TRUNC)), "mc"),
    "chmod": (lambda p: os.chmod(p, 0o600), "c"),
    "chmod_same": (lambda p: os.chmod(p, 0o644), "c"),
    "chown": (lambda p: os.chown(p, 1, 1), "c"),
    "chown_same": (lambda p: os.chown(p, 0, 0), "c"),
    "link": (lambda p: os.link(p, "another"), "c"),
    "setxattr": (lambda p: os.setxattr(p, "trusted.t", b"v"), "c"),
    "removexattr": (lambda p: os.removexattr(p, "trusted.there"), "c"),
    "stat": (os.stat, ""),
    "access": (lambda p: os.access(p, os.R_OK), ""),
    "open": (lambda p: os.close(os.open(p, os.O_RDWR)), ""),
    "open_creat": (lambda p: os.close(os.open(p, os.O_RDWR | os.O_CREAT)), ""),
    "read": (_open_do(os.O_RDONLY, lambda fd: os.read(fd, 1)), "a"),
    "read_noatime": (_open_do(os.O_RDONLY | os.O_NOATIME, lambda fd: os.read(fd, 1)), ""),
    "pread": (_open_do(os.O_RDONLY, lambda fd: os.pread(fd, 1, 1)), "a"),
    "fsync": (_open_do(os.O_RDWR, os.fsync), ""),
    "getxattr": (lambda p: os.getxattr(p, "trusted.there"), ""),
    "listxattr": (os.listxattr, ""),
    "failed_truncate": (lambda p: Context.errno_of(os.truncate, p, -1), ""),
    "failed_removexattr": (lambda p: Context.errno_of(os.removexattr, p, "trusted.none"), ""),
}


@case("times", ON_FILE, may_lack=(ANY,))
def on_file(c: Context, operation: Callable[[str], object], want: str):
    """Which time stamps of a regular file move (atime by the relatime rule: it is not newer than mtime)."""
    name = c.file(b"abc")
    os.setxattr(name, "trusted.there", b"1")
    if "a" in want and os.statvfs(".").f_flag & os.ST_NOATIME:
        same(c.changed(name, lambda: operation(name)), "")
        raise Unsupported("mounted noatime, and atime stayed")
    return same(c.changed(name, lambda: operation(name)), want)


@case("times", compare=False)
def truncate_to_same_size(c: Context):
    """POSIX: ftruncate without a change of size may leave the times; tmpfs and ext4 differ."""
    name = c.file(b"abc")
    among(c.changed(name, lambda: os.truncate(name, 3)), ("", "c", "mc"))


@case("times")
def open_trunc_of_empty_file(c: Context):
    """O_TRUNC of a file that is empty already marks mtime and ctime."""
    name = c.file()
    return same(c.changed(name, lambda: os.close(os.open(name, os.O_WRONLY | os.O_TRUNC))), "mc")


@case("times", compare=False)
def store_through_mapping(c: Context):
    """A store through a shared mapping moves mtime and ctime by the next msync; tmpfs alone never does it."""
    name = c.file(b"abc")
    moved = c.changed(name, lambda: _open_do(os.O_RDWR, _store_through_mapping)(name)).replace("a", "")
    if c.fstype != "tmpfs":
        same(moved, "mc")


@case("times")
def unlink_moves_ctime(c: Context):
    """Of the file that loses one of its names."""
    name = c.file()
    os.link(name, "other")
    return same(c.changed(name, lambda: os.unlink("other")), "c")


@case("times")
def rename_moves_ctime(c: Context):
    """Linux: the renamed file's ctime moves, and that of a replaced one that has another name."""
    name, victim = c.file(), c.file()
    os.link(victim, "spare")
    link = "spare"
    first = c.changed(link, lambda: os.rename(name, victim))
    os.link(victim, "watch")
    second = c.changed("watch", lambda: os.rename(victim, "elsewhere"))
    return same((first, second), ("c", "c"))


@case("times")
def write_order(c: Context):
    """ctime never lies before mtime after a write; two writes have two times."""
    name = c.file()
    stamps = []
    for _ in range(5):
        c.tick()
        with open(name, "ab", buffering=0) as handle:
            handle.write(b"x")
        s = os.stat(name)
        stamps.append(s.st_mtime_ns)
        same(s.st_ctime_ns >= s.st_mtime_ns, True)
    return same(stamps == sorted(set(stamps)), True)


@case("times")
def ctime_can_not_be_set_back(c: Context):
    name = c.file()
    before = time.time_ns() - NS // 50
    os.utime(name, ns=(0, 0))
    return same(os.stat(name).st_ctime_ns >= before, True)


# what moves on the directory

IN_DIR: dict[str, tuple[Callable[[], object], str]] = {
    "create": (lambda: os.close(os.open("d/new", os.O_CREAT | os.O_WRONLY)), "mc"),
    "open_existing": (lambda: os.close(os.open("d/file", os.O_CREAT | os.O_WRONLY)), ""),
    "write_existing": (_open_do(os.O_WRONLY, lambda fd: os.write(fd, b"x")), ""),
    "mkdir": (lambda: os.mkdir("d/new"), "mc"),
    "symlink": (lambda: os.symlink("x", "d/new"), "mc"),
    "mknod": (lambda: os.mknod("d/new", stat.S_IFIFO | 0o644), "mc"),
    "link": (lambda: os.link("d/file", "d/new"), "mc"),
    "unlink": (lambda: os.unlink("d/file"), "mc"),
    "rmdir": (lambda: os.rmdir("d/sub"), "mc"),
    "rename": (lambda: os.rename("d/file", "d/new"), "mc"),
    "rename_over": (lambda: os.rename("d/file", "d/file2"), "mc"),
    "rename_out": (lambda: os.rename("d/file", "e/file"), "mc"),
    "rename_in": (lambda: os.rename("e/there", "d/there"), "mc"),
    "rename_dir_out": (lambda: os.rename("d/sub", "e/sub"), "mc"),
    "exchange": (lambda: renameat2("d/file", "e/there", 2), "mc"),
    "rename_itself": (lambda: os.rename("d/file", "d/file"), ""),
    "chmod_entry": (lambda: os.chmod("d/file", 0o600), ""),
    "truncate_entry": (lambda: os.truncate("d/file", 77), ""),
    "chmod_dir": (lambda: os.chmod("d", 0o700), "c"),
    "chown_dir": (lambda: os.chown("d", 1, 1), "c"),
    "create_below": (lambda: os.mkdir("d/sub/deeper"), ""),
    "lookup": (lambda: os.path.exists("d/none"), ""),
    "failed_mkdir": (lambda: Context.errno_of(os.mkdir, "d/sub"), ""),
    "failed_unlink": (lambda: Context.errno_of(os.unlink, "d/none"), ""),
    "failed_rmdir": (lambda: Context.errno_of(os.rmdir, "d/full"), ""),
    "failed_rename": (lambda: Context.errno_of(os.rename, "d/file", "d/full"), ""),
}


@case("times", IN_DIR)
def on_directory(c: Context, operation: Callable[..., object], want: str):
    """Which time stamps of the directory move."""
    for name in ("d", "e", "d/sub", "d/full", "d/full/x"):
        os.mkdir(name)
    for name in ("d/file", "d/file2", "e/there"):
        with open(name, "w"):
            pass
    run = (lambda: operation("d/file")) if operation is IN_DIR["write_existing"][0] else operation
    return same(c.changed("d", run), want)


@case("times")
def moved_directory_itself(c: Context):
    """A directory that gets a new parent: its ctime moves (mtime may, for its ".." changed)."""
    os.makedirs("d/sub")
    os.mkdir("e")
    before = os.stat("d/sub").st_ctime_ns
    c.tick()
    os.rename("d/sub", "e/sub")
    return same(os.stat("e/sub").st_ctime_ns > before, True)


# relatime


def _needs_relatime(c: Context) -> None:
    if not os.statvfs(".").f_flag & os.ST_RELATIME:
        raise Unsupported("not mounted relatime")


@case("relatime", may_lack=(ANY,))
def second_read_leaves_atime(c: Context):
    """The first read after a change moves atime, the second does not, until the next change."""
    _needs_relatime(c)
    name = c.file(b"x" * 100)
    read = lambda: c.data(name)  # noqa: E731
    got = [c.changed(name, read), c.changed(name, read), c.changed(name, read)]
    os.chmod(name, 0o600)
    got.append(c.changed(name, read))
    return same(got, ["a", "", "", "a"])


@case("relatime", may_lack=(ANY,))
def atime_older_than_a_day(c: Context):
    _needs_relatime(c)
    name = c.file(b"x")
    now = time.time_ns()
    os.utime(name, ns=(now - 2 * 86400 * NS, now - 3 * 86400 * NS))
    return same("a" in c.changed(name, lambda: c.data(name)), True)


@case("relatime", may_lack=(ANY,))
def directories_and_symlinks(c: Context):
    """readdir and readlink move atime by the same rule."""
    _needs_relatime(c)
    top = c.dir()
    os.mkdir(f"{top}/x")
    os.symlink("target", "link")
    got = [c.changed(top, lambda: os.listdir(top)), c.changed(top, lambda: os.listdir(top))]
    got += [c.changed("link", lambda: os.readlink("link"))]
    return same(got, ["a", "", "a"])


@case("relatime", may_lack=(ANY,))
def following_a_symlink(c: Context):
    _needs_relatime(c)
    os.symlink(c.file(), "link")
    return same(c.changed("link", lambda: os.stat("link")), "a")
