# SPDX-License-Identifier: MIT
"""Cases: statfs, fsync, file handles, inotify, inode numbers."""

import os
import stat
import subprocess
import time

from . import native
from .context import Context, among, same
from .table import ANY, Unsupported, case

# statfs


@case("statfs")
def plausible(c: Context):
    """Blocks, free and available, inodes, a power of two as block size, and names of 255 hold together."""
    s = os.statvfs(".")
    facts = (
        s.f_blocks > 0,
        s.f_bavail <= s.f_bfree <= s.f_blocks,
        s.f_ffree <= s.f_files,
        s.f_files > 0,
        s.f_bsize > 0 and s.f_bsize & (s.f_bsize - 1) == 0,
        s.f_frsize > 0 and s.f_frsize & (s.f_frsize - 1) == 0,
        s.f_namemax,
    )
    return same(facts, (True,) * 6 + (255,))


@case("statfs")
def same_everywhere(c: Context):
    """A file, a directory below, a descriptor and the root of the mount show one file system."""
    name, top = c.file(), c.dir()
    with c.open(name, os.O_RDONLY) as fd:
        rows = [os.statvfs(x) for x in (".", name, top, fd)]
    return same(len({(s.f_blocks, s.f_frsize, s.f_namemax, s.f_fsid) for s in rows}), 1)


@case("statfs")
def counts_data(c: Context):
    """8 MiB of data take 8 MiB at least."""
    before = os.statvfs(".")
    with c.open("big", os.O_RDWR | os.O_CREAT) as fd:
        for _ in range(8):
            os.write(fd, os.urandom(1 << 20))
        os.fsync(fd)
    after = os.statvfs(".")
    return same((before.f_bfree - after.f_bfree) * before.f_frsize >= 7 << 20, True)


@case("statfs", compare=False)
def counts_inodes(c: Context):
    """200 files take 200 inodes where inodes are counted."""
    before = os.statvfs(".").f_ffree
    for i in range(200):
        os.mknod(f"f{i}", stat.S_IFREG | 0o644)
    among(before - os.statvfs(".").f_ffree >= 150, (True,))


# fsync


@case(
    "fsync",
    {
        f"{f}_{k}": (f, k)
        for f in ("fsync", "fdatasync")
        for k in ("rdwr", "rdonly", "wronly", "dir", "unlinked", "clean")
    },
)
def fsync_on(c: Context, call: str, kind: str):
    """fsync and fdatasync work on every descriptor of files and directories."""
    name = c.dir() if kind == "dir" else c.file(b"data" * 5000)
    flags = {"rdonly": os.O_RDONLY, "dir": os.O_RDONLY, "wronly": os.O_WRONLY}.get(kind, os.O_RDWR)
    with c.open(name, flags) as fd:
        if kind == "unlinked":
            os.unlink(name)
        if kind in ("rdwr", "wronly", "unlinked"):
            os.pwrite(fd, b"new", 9000)
        return same(c.errno_of(getattr(os, call), fd), "OK")


@case("fsync", ("fifo", "path"))
def fsync_where_it_makes_no_sense(c: Context, kind: str):
    name = c.thing("fifo") if kind == "fifo" else c.file()
    with c.open(name, os.O_RDONLY | os.O_NONBLOCK if kind == "fifo" else os.O_PATH) as fd:
        return same(c.errno_of(os.fsync, fd), "EINVAL" if kind == "fifo" else "EBADF")


@case("fsync")
def sync_of_the_whole(c: Context):
    with c.open(c.file(b"x"), os.O_RDONLY) as fd:
        return same(c.errno_of(native.syncfs, fd), "OK")


@case("fsync")
def replace_by_rename(c: Context):
    """The pattern of editors: write aside, fsync, rename, fsync of the directory."""
    name = c.file(b"old")
    with c.open("aside", os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"new")
        os.fsync(fd)
    os.rename("aside", name)
    with c.open(".", os.O_RDONLY) as fd:
        os.fsync(fd)
    return same((c.data(name), os.listdir(".")), (b"new", [name]))


# inode numbers and handles


@case("inode")
def numbers_are_stable_and_unique(c: Context):
    """500 files have 500 numbers, and keep them through rename, write and chmod."""
    before = {}
    for i in range(500):
        os.mknod(f"f{i}", stat.S_IFREG | 0o644)
        before[i] = os.stat(f"f{i}").st_ino
    for i in range(500):
        os.rename(f"f{i}", f"g{i}")
        os.truncate(f"g{i}", i)
    kept = all(os.stat(f"g{i}").st_ino == n for i, n in before.items())
    return same((len(set(before.values())), kept, 0 in before.values()), (500, True, False))


@case("inode")
def device_is_one(c: Context):
    return same(
        len(
            {os.lstat(c.thing(k)).st_dev for k in ("file", "dir", "symlink", "fifo")} | {os.stat(".").st_dev}
        ),
        1,
    )


@case("inode")
def stat_of_kinds(c: Context):
    """Type bits, sizes of what has no contents, and fstat like stat."""
    rows = []
    for kind in ("file", "fifo", "sock", "chr", "symlink"):
        s = os.lstat(c.thing(kind))
        rows.append(
            (
                stat.filemode(s.st_mode)[0],
                s.st_size if kind != "symlink" else len("target-of-symlink") - s.st_size,
            )
        )
    with c.open(c.file(b"abc"), os.O_RDONLY) as fd:
        rows.append(os.fstat(fd).st_size)
    return same(rows, [("-", 8), ("p", 0), ("s", 0), ("c", 0), ("l", 0), 3])


def _handle(path: str) -> tuple[int, bytes]:
    try:
        return native.name_to_handle(path)
    except OSError as error:
        raise Unsupported(f"name_to_handle_at: {error.strerror}") from error


def _reach(c: Context, handle, flags: int = os.O_RDONLY):
    """fstat's inode number through the handle, or the errno's name."""
    with c.open(".", os.O_RDONLY) as mount:
        try:
            fd = native.open_by_handle(mount, handle, flags)
        except OSError as error:
            return c.errno_of(_raise, error)
        number = os.fstat(fd).st_ino
        os.close(fd)
        return number


def _raise(error: OSError) -> None:
    raise error


@case("handle", ("file", "dir", "fifo"))
def opens_by_handle(c: Context, kind: str):
    name = c.thing(kind)
    return same(_reach(c, _handle(name), os.O_RDONLY | os.O_NONBLOCK) == os.lstat(name).st_ino, True)


@case("handle")
def handle_of_symlink(c: Context):
    """A symlink's handle opens with O_PATH and reads as a link."""
    os.symlink("target", "link")
    handle = _handle("link")
    with c.open(".", os.O_RDONLY) as mount:
        fd = native.open_by_handle(mount, handle, os.O_PATH | os.O_NOFOLLOW)
        target = os.readlink("", dir_fd=fd)
        os.close(fd)
    return same(target, "target")


@case("handle")
def handle_survives_rename_and_write(c: Context):
    name = c.file(b"x")
    handle, number = _handle(name), os.stat(name).st_ino
    os.mkdir("d")
    os.rename(name, "d/moved")
    os.truncate("d/moved", 10_000)
    return same(_reach(c, handle) == number, True)


@case("handle")
def handle_reads_and_writes(c: Context):
    name = c.file(b"by name")
    with c.open(".", os.O_RDONLY) as mount:
        fd = native.open_by_handle(mount, _handle(name), os.O_RDWR)
        got = os.pread(fd, 99, 0)
        os.pwrite(fd, b"BY", 0)
        os.close(fd)
    return same((got, c.data(name)), (b"by name", b"BY name"))


@case("handle")
def handle_survives_dropped_caches(c: Context):
    """After the kernel has forgotten the inode, file system and handle still lead to it, down a path too."""
    os.makedirs("a/b")
    with open("a/b/f", "w") as handle:
        handle.write("deep")
    handles, numbers = [], []
    for path in ("a/b/f", "a/b"):
        handles.append(_handle(path))
        numbers.append(os.stat(path).st_ino)
    with c.open(".", os.O_RDONLY) as fd:
        native.syncfs(fd)
    with open("/proc/sys/vm/drop_caches", "w") as control:
        control.write("2")
    return same([_reach(c, h) == n for h, n in zip(handles, numbers, strict=True)], [True, True])


@case("handle", ("file", "dir"))
def handle_of_removed_is_stale(c: Context, kind: str):
    name = c.thing(kind)
    handle = _handle(name)
    (os.rmdir if kind == "dir" else os.unlink)(name)
    return same(_reach(c, handle), "ESTALE")


@case("handle")
def handle_is_stale_when_the_inode_is_reused(c: Context):
    """300 new files: whoever gets the old inode number is not who the handle meant."""
    name = c.file(b"old")
    handle = _handle(name)
    os.unlink(name)
    for i in range(300):
        os.mknod(f"f{i}", stat.S_IFREG | 0o644)
    return same(_reach(c, handle), "ESTALE")


@case("handle")
def handles_differ(c: Context):
    names = [c.file() for _ in range(50)]
    handles = {_handle(n) for n in names}
    os.link(names[0], "again")
    return same((len(handles), _handle("again") == _handle(names[0])), (50, True))


@case("handle")
def handle_of_open_unlinked_file(c: Context):
    """An open file without a name may be reached by its handle or be stale; closed, it is stale (soon: FUSE
    sends RELEASE after close has returned and keeps the inode until it is answered)."""
    name = c.file(b"x")
    handle, number = _handle(name), os.stat(name).st_ino
    with c.open(name, os.O_RDONLY):
        os.unlink(name)
        among(_reach(c, handle), (number, "ESTALE"))
    patience = time.monotonic() + 5
    while (got := _reach(c, handle)) != "ESTALE" and time.monotonic() < patience:
        time.sleep(0.01)
    return same(got, "ESTALE")


@case("handle")
def handle_needs_privilege(c: Context):
    handle = _handle(c.file())
    return same(c.as_nobody(lambda: _reach(c, handle)), "EPERM")


@case("handle")
def damaged_handle(c: Context):
    """Bytes that name nothing are ESTALE (or another error), never a file or a hang."""
    kind, opaque = _handle(c.file())
    got = [_reach(c, (kind, bytes(b ^ 0xFF for b in opaque))), _reach(c, (kind, bytes(len(opaque))))]
    for answer in got:
        same(isinstance(answer, str) or answer == 0, True, str(answer))


# inotify

WATCHED = {
    "create": (native.IN_CREATE, lambda: open("d/new", "w").close(), b"new"),
    "mkdir": (native.IN_CREATE, lambda: os.mkdir("d/sub"), b"sub"),
    "unlink": (native.IN_DELETE, lambda: os.unlink("d/file"), b"file"),
    "rename_out": (native.IN_MOVED_FROM, lambda: os.rename("d/file", "out"), b"file"),
    "rename_in": (native.IN_MOVED_TO, lambda: os.rename("other", "d/in"), b"in"),
    "write": (native.IN_MODIFY, lambda: os.write(os.open("d/file", os.O_WRONLY), b"x"), b"file"),
    "truncate": (native.IN_MODIFY, lambda: os.truncate("d/file", 9), b"file"),
    "chmod": (native.IN_ATTRIB, lambda: os.chmod("d/file", 0o600), b"file"),
    "close": (native.IN_CLOSE_WRITE, lambda: os.close(os.open("d/file", os.O_WRONLY)), b"file"),
}


@case("inotify", WATCHED)
def reports(c: Context, mask: int, action, name: bytes):
    """One change in a watched directory gives the event with the name."""
    os.mkdir("d")
    for path in ("d/file", "other"):
        open(path, "w").close()
    watch = native.Inotify("d", mask)
    action()
    events = [(m & 0xFFF, n) for m, n in watch.events()]
    os.close(watch.fd)
    return same(events, [(mask, name)])


@case("inotify")
def reports_end_of_watched_file(c: Context):
    name = c.file()
    watch = native.Inotify(name, native.IN_DELETE_SELF)
    os.unlink(name)
    events = [m & 0xFFF for m, _ in watch.events()]
    os.close(watch.fd)
    return same(native.IN_DELETE_SELF in events, True)


# the rest


@case("system", may_lack=(ANY,))
def birth_time(c: Context):
    """stat(1) shows the birth time where the file system has one; it does not move."""
    name = c.file()

    def look() -> str:
        command = ["stat", "-c", "%w", name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    first = look()
    if first == "-":
        raise Unsupported("no birth time")
    os.utime(name, ns=(5, 5))
    return same(look() == first, True)


@case("system")
def descriptors_relative_to_directory(c: Context):
    """The *at calls: make, stat, rename and unlink relative to an open directory."""
    os.mkdir("d")
    with c.open("d", os.O_RDONLY) as fd:
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o640, dir_fd=fd))
        os.mkdir("sub", dir_fd=fd)
        os.rename("f", "sub/g", src_dir_fd=fd, dst_dir_fd=fd)
        os.symlink("g", "sub/l", dir_fd=fd)
        os.link("sub/g", "h", src_dir_fd=fd, dst_dir_fd=fd)
        seen = os.stat("sub/l", dir_fd=fd).st_nlink, os.readlink("sub/l", dir_fd=fd), sorted(os.listdir(fd))
        os.chmod("h", 0o600, dir_fd=fd)
        os.unlink("sub/g", dir_fd=fd)
    return same((seen, c.mode("d/h"), os.stat("d/h").st_nlink), ((2, "g", ["h", "sub"]), "0600", 1))


@case("system")
def tree_is_copied_by_cp_and_tar(c: Context):
    """cp -a and tar carry a small tree of all kinds over and back."""
    os.mkdir("src")
    for kind in ("file", "dir", "symlink", "fifo", "chr"):
        os.rename(c.thing(kind), f"src/{kind}")
    os.link("src/file", "src/hard")
    os.utime("src/file", ns=(10**18, 10**18))
    subprocess.run(["cp", "-a", "src", "copy"], check=True)
    subprocess.run("tar -cf - -C src . | (mkdir untar && tar -xf - -C untar)", shell=True, check=True)
    rows = []
    for top in ("src", "copy", "untar"):
        rows.append(
            [
                (
                    e.name,
                    s.st_mode,
                    s.st_nlink,
                    s.st_size if stat.S_ISREG(s.st_mode) else 0,
                    s.st_mtime_ns if e.name == "file" else 0,
                    s.st_rdev,
                )
                for e in sorted(os.scandir(top), key=lambda e: e.name)
                for s in [os.lstat(e.path)]
            ]
        )
    return same((rows[1] == rows[0], [r[:4] for r in rows[2]] == [r[:4] for r in rows[0]]), (True, True))
