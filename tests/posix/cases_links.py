# SPDX-License-Identifier: MIT
"""Cases: symlinks, hard links, device nodes, FIFOs, sockets, unlink."""

import os
import socket
import stat
import subprocess

from .context import Context, same
from .native import link_descriptor
from .table import ANY, Unsupported, case

# symlinks


@case("symlink", (1, 2, 31, 32, 59, 60, 61, 127, 128, 255, 256, 1023, 1024, 2047, 4000, 4094, 4095))
def symlink_length(c: Context, length: int):
    """Targets of every length up to 4095 come back as they were given; st_size is the length."""
    target = ("0123456789/" * 400)[:length]
    c.errno_of(os.symlink, target, "link")
    s = os.lstat("link")
    return same((os.readlink("link") == target, s.st_size, stat.S_IMODE(s.st_mode)), (True, length, 0o777))


@case("symlink", (4096, 5000))
def symlink_too_long(c: Context, length: int):
    return same(
        (c.errno_of(os.symlink, "t" * length, "link"), os.path.lexists("link")), ("ENAMETOOLONG", False)
    )


@case("symlink")
def symlink_empty_target(c: Context):
    return same(c.errno_of(os.symlink, "", "link"), "ENOENT")


@case("symlink", ("file", "dir", "symlink", "fifo"))
def symlink_exists(c: Context, kind: str):
    return same(c.errno_of(os.symlink, "x", c.thing(kind)), "EEXIST")


@case("symlink", {str(n): n for n in (1, 10, 39, 40, 41, 60)})
def symlink_chain(c: Context, hops: int):
    """40 symlinks are followed, the 41st is ELOOP."""
    with open("l0", "w") as handle:
        handle.write("end")
    for i in range(hops):
        os.symlink(f"l{i}", f"l{i + 1}")
    return same(c.errno_of(os.stat, f"l{hops}"), "OK" if hops <= 40 else "ELOOP")


@case("symlink")
def symlink_target_bytes(c: Context):
    """Any bytes but NUL make a target."""
    target = bytes(range(1, 256))
    os.symlink(target, "link")
    return same(os.readlink(b"link") == target, True)


@case("symlink")
def symlink_dangling(c: Context):
    os.symlink("nowhere", "link")
    got = [
        c.errno_of(os.stat, "link"),
        c.errno_of(os.lstat, "link"),
        c.errno_of(os.chmod, "link", 0o600),
        c.errno_of(os.truncate, "link", 0),
        c.errno_of(os.listdir, "link"),
        os.path.exists("nowhere"),
        c.errno_of(lambda: open("link", "w").close()),
        os.path.exists("nowhere"),
    ]
    return same(got, ["ENOENT", "OK", "ENOENT", "ENOENT", "ENOENT", False, "OK", True])


@case("symlink")
def symlink_directories(c: Context):
    """Through a symlink: reading, making and removing names below it."""
    os.mkdir("d")
    os.symlink("d", "link")
    os.mkdir("link/sub")
    seen = os.listdir("d"), os.stat("link/sub/..").st_ino == os.stat("d").st_ino
    os.rmdir("link/sub")
    return same((seen, os.listdir("link")), ((["sub"], True), []))


@case("symlink")
def symlink_absolute(c: Context):
    name = c.file(b"here")
    os.symlink(os.path.abspath(name), "link")
    return same(c.data("link"), b"here")


@case("symlink")
def readlink_of_others(c: Context):
    got = [c.errno_of(os.readlink, c.thing(k)) for k in ("file", "dir", "fifo", "sock", "absent")]
    return same(got, ["EINVAL"] * 4 + ["ENOENT"])


@case("symlink")
def symlink_owner_and_times(c: Context):
    """lchown and utime without following change the link alone."""
    name = c.file()
    os.symlink(name, "link")
    os.lchown("link", 12, 34)
    os.utime("link", ns=(10**9, 2 * 10**9 + 5), follow_symlinks=False)
    link, target = os.lstat("link"), os.stat("link")
    return same(
        (link.st_uid, link.st_gid, link.st_mtime_ns, target.st_uid, target.st_mtime_ns > 10**10),
        (12, 34, 2 * 10**9 + 5, 0, True),
    )


@case("symlink")
def symlink_stat(c: Context):
    os.symlink("abc", "link")
    s = os.lstat("link")
    return same(
        (stat.S_ISLNK(s.st_mode), s.st_size, s.st_nlink, os.path.realpath("link") == os.path.abspath("abc")),
        (True, 3, 1, True),
    )


# hard links


@case("link")
def link_shares_inode(c: Context):
    name = c.file(b"one")
    os.link(name, "two")
    a, b = os.stat(name), os.stat("two")
    with open("two", "ab") as handle:
        handle.write(b"+")
    os.chmod("two", 0o600)
    return same((a.st_ino == b.st_ino, b.st_nlink, c.data(name), c.mode(name)), (True, 2, b"one+", "0600"))


@case("link")
def link_counts(c: Context):
    """nlink goes up and down with the names, also across directories."""
    name = c.file()
    os.mkdir("d")
    counts = []
    for i in range(50):
        os.link(name, f"d/{i}")
    counts.append(os.stat(name).st_nlink)
    for i in range(0, 50, 2):
        os.unlink(f"d/{i}")
    counts.append(os.stat("d/1").st_nlink)
    os.unlink(name)
    counts.append(os.stat("d/1").st_nlink)
    return same(counts, [51, 26, 25])


@case("link", ("file", "symlink", "fifo", "sock", "chr"))
def link_of_kind(c: Context, kind: str):
    """A hard link to each kind; a symlink is linked itself, not followed."""
    name = c.thing(kind)
    os.link(name, "second", follow_symlinks=False)
    a, b = os.lstat(name), os.lstat("second")
    os.unlink(name)
    return same(
        (a.st_ino == b.st_ino, b.st_nlink, os.lstat("second").st_nlink, a.st_mode == b.st_mode),
        (True, 2, 1, True),
    )


@case("link")
def link_of_directory(c: Context):
    return same(c.errno_of(os.link, c.dir(), "other"), "EPERM")


@case("link", ("file", "dir", "symlink", "fifo"))
def link_over(c: Context, kind: str):
    return same(c.errno_of(os.link, c.file(), c.thing(kind)), "EEXIST")


@case("link")
def link_over_itself(c: Context):
    name = c.file()
    return same((c.errno_of(os.link, name, name), os.stat(name).st_nlink), ("EEXIST", 1))


@case("link")
def link_across_file_systems(c: Context):
    name = c.file()
    return same(c.errno_of(os.link, name, f"{c.elsewhere}/x"), "EXDEV")


@case("link")
def link_follows_when_asked(c: Context):
    name = c.file(b"target")
    os.symlink(name, "sym")
    os.link(f"{os.getcwd()}/sym", "hard", src_dir_fd=os.open(".", os.O_RDONLY), follow_symlinks=True)
    return same(os.lstat("hard").st_ino == os.stat(name).st_ino, True)


@case("link")
def link_of_unlinked_open_file(c: Context):
    """A file without names can't get one back through /proc (unless it is an O_TMPFILE)."""
    name = c.file(b"x")
    fd = os.open(name, os.O_RDWR)
    os.unlink(name)
    return same(c.errno_of(link_descriptor, fd, "again"), "ENOENT")


@case("link", compare=False)
def link_many(c: Context):
    """2000 names for one file, or EMLINK before; removing them all works."""
    name, made = c.file(), 0
    os.mkdir("d")
    for i in range(2000):
        if (result := c.errno_of(os.link, name, f"d/{i}")) != "OK":
            same(result, "EMLINK")
            break
        made += 1
    same(os.stat(name).st_nlink, made + 1)
    for i in range(made):
        os.unlink(f"d/{i}")
    same(os.stat(name).st_nlink, 1)


# nodes, FIFOs, sockets


@case(
    "mknod",
    {
        "chr": (stat.S_IFCHR, 1, 3),
        "blk": (stat.S_IFBLK, 7, 200),
        "big_minor": (stat.S_IFCHR, 240, 0xABCDE),
        "big_major": (stat.S_IFBLK, 4095, 1),
        "zero": (stat.S_IFCHR, 0, 0),
        "fifo": (stat.S_IFIFO, 0, 0),
        "sock": (stat.S_IFSOCK, 0, 0),
        "reg": (stat.S_IFREG, 0, 0),
    },
)
def mknod_keeps_device(c: Context, fmt: int, major: int, minor: int):
    """Type, mode and device number are kept."""
    os.mknod("node", fmt | 0o640, os.makedev(major, minor))
    s = os.lstat("node")
    return same(
        (stat.S_IFMT(s.st_mode) == fmt, stat.S_IMODE(s.st_mode), s.st_rdev, s.st_size, s.st_nlink),
        (True, 0o640, os.makedev(major, minor), 0, 1),
    )


@case("mknod", ("file", "dir", "symlink", "fifo", "sock", "chr"))
def mknod_exists(c: Context, kind: str):
    return same(c.errno_of(os.mknod, c.thing(kind), stat.S_IFIFO | 0o644), "EEXIST")


@case("mknod")
def mknod_umask(c: Context):
    os.umask(0o027)
    os.mknod("f", stat.S_IFIFO | 0o777)
    os.mknod("s", stat.S_IFSOCK | 0o777)
    os.mknod("r", stat.S_IFREG | 0o777)
    return same([c.mode(n) for n in "fsr"], ["0750"] * 3)


@case("mknod")
def mknod_without_privilege(c: Context):
    """uid 65534 makes FIFOs, sockets and files, not devices."""
    os.chmod(".", 0o777)
    got = {
        k: c.as_nobody(lambda f=f, k=k: os.mknod(k, f | 0o644, os.makedev(1, 3)))
        for k, f in (
            ("chr", stat.S_IFCHR),
            ("blk", stat.S_IFBLK),
            ("fifo", stat.S_IFIFO),
            ("sock", stat.S_IFSOCK),
            ("reg", stat.S_IFREG),
        )
    }
    return same(got, {"chr": "EPERM", "blk": "EPERM", "fifo": None, "sock": None, "reg": None})


@case("mknod", may_lack=(ANY,))
def device_works(c: Context):
    """A node for /dev/null and /dev/zero leads to the device, unless the mount is nodev."""
    if os.statvfs(".").f_flag & os.ST_NODEV:
        raise Unsupported("mounted nodev")
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod("zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with c.open("null", os.O_RDWR) as null, c.open("zero", os.O_RDONLY) as zero:
        return same((os.write(null, b"x" * 100), os.read(null, 9), os.read(zero, 3)), (100, b"", bytes(3)))


@case("fifo")
def fifo_carries_data(c: Context):
    os.mkfifo("p")
    join = c.start(lambda: os.write(os.open("p", os.O_WRONLY), b"through the pipe"))
    with c.open("p", os.O_RDONLY) as fd:
        data = b""
        while chunk := os.read(fd, 100):
            data += chunk
    return same((join(), data, os.stat("p").st_size), (16, b"through the pipe", 0))


@case("fifo")
def fifo_nonblocking(c: Context):
    os.mkfifo("p")
    got = [c.errno_of(os.open, "p", os.O_WRONLY | os.O_NONBLOCK)]
    reader = os.open("p", os.O_RDONLY | os.O_NONBLOCK)
    got.append(os.read(reader, 5))
    writer = os.open("p", os.O_WRONLY | os.O_NONBLOCK)
    got += [
        c.errno_of(os.read, reader, 5),
        os.write(writer, b"ab"),
        os.read(reader, 5),
        c.errno_of(os.lseek, reader, 0, 0),
    ]
    return same(got, ["ENXIO", b"", "EAGAIN", 2, b"ab", "ESPIPE"])


@case("fifo")
def fifo_survives_rename_and_unlink(c: Context):
    """Both ends stay connected when the name moves or goes."""
    os.mkfifo("p")
    reader = os.open("p", os.O_RDONLY | os.O_NONBLOCK)
    os.rename("p", "q")
    writer = os.open("q", os.O_WRONLY)
    os.unlink("q")
    os.write(writer, b"still")
    return same((os.read(reader, 9), os.fstat(reader).st_nlink), (b"still", 0))


@case("fifo")
def fifo_two_names_one_pipe(c: Context):
    os.mkfifo("p")
    os.link("p", "q")
    reader = os.open("p", os.O_RDONLY | os.O_NONBLOCK)
    os.write(os.open("q", os.O_WRONLY), b"same")
    return same(os.read(reader, 9), b"same")


@case(
    "socket", {"stream": socket.SOCK_STREAM, "dgram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}
)
def unix_socket_works(c: Context, kind: int):
    """bind makes the name, connect finds it, data pass, unlink removes it."""
    server, client = socket.socket(socket.AF_UNIX, kind), socket.socket(socket.AF_UNIX, kind)
    server.bind("s")
    made = stat.S_ISSOCK(os.lstat("s").st_mode), c.mode("s")
    if kind != socket.SOCK_DGRAM:
        server.listen()
    client.connect("s")
    peer = server if kind == socket.SOCK_DGRAM else server.accept()[0]
    client.send(b"hello")
    data = peer.recv(10)
    os.unlink("s")
    again = c.errno_of(socket.socket(socket.AF_UNIX, kind).connect, "s")
    return same((made, data, again), ((True, "0755"), b"hello", "ENOENT"))


@case("socket")
def unix_socket_errors(c: Context):
    """bind over a name, connect to what nobody listens on, to a file, and without permission."""
    make = lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # noqa: E731
    first, second = make(), make()
    first.bind("s")
    name = c.file()
    got = [
        c.errno_of(second.bind, "s"),
        c.errno_of(second.bind, name),
        c.errno_of(make().connect, "s"),
        c.errno_of(make().connect, name),
    ]
    first.listen()
    os.chmod("s", 0o600)
    got.append(c.as_nobody(lambda: make().connect("s")))
    return same(got, ["EADDRINUSE", "EADDRINUSE", "ECONNREFUSED", "ECONNREFUSED", "EACCES"])


@case("socket")
def unix_socket_after_rename(c: Context):
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind("s")
    server.listen()
    os.rename("s", "t")
    return same(c.errno_of(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect, "t"), "OK")


# unlink


@case("unlink", ("absent", "file", "dir", "full", "symlink", "fifo", "sock", "chr"))
def unlink_on(c: Context, kind: str):
    name = c.thing(kind)
    want = {"absent": "ENOENT", "dir": "EISDIR", "full": "EISDIR"}.get(kind, "OK")
    return same((c.errno_of(os.unlink, name), os.path.lexists(name)), (want, kind in ("dir", "full")))


@case("unlink")
def unlinked_file_lives_on(c: Context):
    """An open file without a name reads, writes, grows, shrinks, takes attributes; nlink is 0."""
    name = c.file(b"0123456789" * 1000)
    fd = os.open(name, os.O_RDWR)
    os.unlink(name)
    got = [os.fstat(fd).st_nlink, os.pread(fd, 10, 5000), os.pwrite(fd, b"new", 20000), os.fstat(fd).st_size]
    os.ftruncate(fd, 5)
    os.fchmod(fd, 0o600)
    os.fchown(fd, 5, 6)
    os.utime(fd, ns=(1, 2))
    os.fsync(fd)
    s = os.fstat(fd)
    got += [os.pread(fd, 99, 0), s.st_size, stat.S_IMODE(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns]
    return same(got, [0, b"0123456789", 3, 20003, b"01234", 5, 0o600, 5, 6, 2])


@case("unlink")
def unlinked_name_is_free(c: Context):
    """The name can be used at once, and the two files do not mix."""
    name = c.file(b"old")
    fd = os.open(name, os.O_RDWR)
    inode = os.fstat(fd).st_ino
    os.unlink(name)
    with open(name, "xb") as handle:
        handle.write(b"new")
    os.pwrite(fd, b"OLD", 0)
    return same((c.data(name), os.pread(fd, 9, 0), os.stat(name).st_ino != inode), (b"new", b"OLD", True))


@case("unlink")
def unlinked_reopen_through_proc(c: Context):
    """/proc/self/fd opens a file that has no name any more."""
    name = c.file(b"data")
    fd = os.open(name, os.O_RDONLY)
    os.unlink(name)
    with c.open(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
        os.pwrite(again, b"D", 0)
    return same(os.pread(fd, 9, 0), b"Data")


@case("unlink")
def unlinked_by_rename(c: Context):
    """A file that rename replaced lives on in the same way."""
    name = c.file(b"victim")
    fd = os.open(name, os.O_RDWR)
    os.rename(c.file(b"winner"), name)
    os.pwrite(fd, b"V", 0)
    return same((os.fstat(fd).st_nlink, os.pread(fd, 9, 0), c.data(name)), (0, b"Victim", b"winner"))


@case("unlink")
def unlinked_open_in_two_processes(c: Context):
    """The last close counts, wherever it is."""
    name = c.file(b"shared")
    fd = os.open(name, os.O_RDWR)
    os.unlink(name)
    ready, go = os.pipe()

    def other() -> bytes:
        os.read(ready, 1)
        return os.pread(fd, 9, 0)

    join = c.start(other)
    os.close(fd)
    os.write(go, b"x")
    return same(join(), b"shared")


@case("unlink")
def unlinked_space_comes_back(c: Context):
    """A 16 MiB file takes space while it is open without a name, and gives it back after."""
    free = lambda: os.statvfs(".").f_bfree * os.statvfs(".").f_frsize  # noqa: E731
    fd = os.open("big", os.O_RDWR | os.O_CREAT)
    for _ in range(16):
        os.write(fd, b"x" * 2**20)
    os.fsync(fd)
    full = free()
    os.unlink("big")
    held = abs(free() - full) < 4 * 2**20
    os.close(fd)
    for _ in range(100):
        if free() - full > 12 * 2**20:
            return same((held, "back"), (True, "back"))
        c.tick()
    return same((held, free() - full), (True, "16 MiB"))


@case("unlink")
def unlinked_program_runs_on(c: Context):
    """A running program whose file is removed."""
    subprocess.run(["cp", "/bin/sleep", "prog"], check=True)
    child = subprocess.Popen(["./prog", "0.3"])
    os.unlink("prog")
    return same(child.wait(), 0)
