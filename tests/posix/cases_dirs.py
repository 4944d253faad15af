# SPDX-License-Identifier: MIT
"""Cases: mkdir, rmdir, working directories, and names."""

import os
import stat

from .context import Context, among, same
from .table import case

KINDS = ("absent", "file", "dir", "full", "symlink", "fifo", "sock")


@case("mkdir", KINDS)
def mkdir_on(c: Context, kind: str):
    """mkdir over each kind of object."""
    return same(c.errno_of(os.mkdir, c.thing(kind)), "OK" if kind == "absent" else "EEXIST")


@case(
    "mkdir",
    {f"{m:04o}_umask_{u:03o}": (m, u) for m in (0o777, 0o700, 0o000, 0o1777) for u in (0, 0o22, 0o77)},
)
def mkdir_mode(c: Context, mode: int, umask: int):
    """Mode of a new directory is mode & ~umask & 01777."""
    name = c.path()
    os.umask(umask)
    os.mkdir(name, mode)
    os.umask(0)
    return same(c.mode(name), f"{mode & ~umask & 0o1777:04o}")


@case("mkdir")
def new_directory_stat(c: Context):
    os.mkdir("d")
    s = os.stat("d")
    return same((stat.S_ISDIR(s.st_mode), s.st_uid, s.st_gid), (True, 0, 0))


@case("mkdir")
def nlink_of_parent(c: Context):
    """Each subdirectory adds a link to its parent, files do not, and rmdir takes it back."""
    top = c.dir()
    counts = [os.stat(top).st_nlink]
    for i in range(20):
        os.mkdir(f"{top}/{i}")
    open(f"{top}/file", "w").close()
    counts.append(os.stat(top).st_nlink)
    for i in range(10):
        os.rmdir(f"{top}/{i}")
    counts.append(os.stat(top).st_nlink)
    return same(counts, [2, 22, 12])


@case("mkdir")
def mkdir_of_parts(c: Context):
    """mkdir with a trailing slash, of ".", "..", "/" and below missing or wrong parents."""
    name = c.file()
    got = [
        c.errno_of(os.mkdir, path)
        for path in ("new/", "new//", ".", "..", "/", "missing/sub", f"{name}/sub", "new/.", "absent/.", "")
    ]
    return same(
        got, ["OK", "EEXIST", "EEXIST", "EEXIST", "EEXIST", "ENOENT", "ENOTDIR", "EEXIST", "ENOENT", "ENOENT"]
    )


@case("mkdir")
def mkdir_in_removed_directory(c: Context):
    """A directory that was removed while it is the working directory takes no new names."""
    top = c.dir()
    os.chdir(top)
    os.rmdir(f"../{top}")
    got = [
        c.errno_of(os.mkdir, "x"),
        c.errno_of(lambda: open("f", "w")),
        c.errno_of(os.symlink, "a", "b"),
        c.errno_of(os.mknod, "p", stat.S_IFIFO | 0o644),
        c.errno_of(os.stat, "x"),
        c.errno_of(os.getcwd),
        c.errno_of(os.rename, "../nothing", "y"),
    ]
    return same(got, ["ENOENT"] * 7)


@case("mkdir")
def removed_directory_is_empty(c: Context):
    """An open directory that was removed: nlink 0, stat works, readdir ends at once."""
    top = c.dir()
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(top)
    s = os.fstat(fd)
    names = os.listdir(fd)
    os.close(fd)
    return same((s.st_nlink, stat.S_ISDIR(s.st_mode), names), (0, True, []))


@case("mkdir")
def removed_directory_takes_attributes(c: Context):
    top = c.dir()
    fd = os.open(top, os.O_RDONLY)
    os.rmdir(top)
    os.fchmod(fd, 0o711)
    os.utime(fd, ns=(5, 7))
    s = os.fstat(fd)
    os.close(fd)
    return same((stat.S_IMODE(s.st_mode), s.st_mtime_ns), (0o711, 7))


@case("mkdir")
def cwd_follows_rename(c: Context):
    """The working directory stays the same object when it is renamed."""
    top = c.dir()
    os.chdir(top)
    os.rename(f"../{top}", "../moved")
    open("inside", "w").close()
    return same((os.path.basename(os.getcwd()), os.listdir("../moved")), ("moved", ["inside"]))


@case("rmdir", {k: k for k in KINDS})
def rmdir_on(c: Context, kind: str):
    want = {"absent": "ENOENT", "dir": "OK", "full": "ENOTEMPTY"}.get(kind, "ENOTDIR")
    return same(c.errno_of(os.rmdir, c.thing(kind)), want)


@case("rmdir")
def rmdir_of_parts(c: Context):
    """rmdir of "." is EINVAL, of ".." ENOTEMPTY, of the mount's own names EBUSY where it is one."""
    os.makedirs("a/b")
    got = [c.errno_of(os.rmdir, p) for p in (".", "a/.", "a/..", "a/b/..", "a/b/", "a/b/", "missing/x", "")]
    return same(got, ["EINVAL", "EINVAL", "ENOTEMPTY", "ENOTEMPTY", "OK", "ENOENT", "ENOENT", "ENOENT"])


@case("rmdir")
def rmdir_through_symlink(c: Context):
    """A symlink to a directory is no directory for rmdir; Linux says so with a trailing slash too."""
    top = c.dir()
    os.symlink(top, "link")
    return same([c.errno_of(os.rmdir, p) for p in ("link", "link/")], ["ENOTDIR", "ENOTDIR"])


@case("rmdir")
def rmdir_of_hidden_names(c: Context):
    """A directory is not empty as long as any kind of name is in it."""
    results = []
    for kind in ("file", "symlink", "fifo", "sock", "dir"):
        top = c.dir()
        os.rename(c.thing(kind), f"{top}/.hidden")
        results.append(c.errno_of(os.rmdir, top))
        (os.rmdir if kind == "dir" else os.unlink)(f"{top}/.hidden")
        results.append(c.errno_of(os.rmdir, top))
    return same(results, ["ENOTEMPTY", "OK"] * 5)


@case("rmdir")
def rmdir_after_many_names(c: Context):
    """A directory that held 2000 names and lost them can go."""
    top = c.dir()
    for i in range(2000):
        os.mknod(f"{top}/{i}", stat.S_IFREG | 0o644)
    first = c.errno_of(os.rmdir, top)
    for i in range(2000):
        os.unlink(f"{top}/{i}")
    return same((first, os.listdir(top), c.errno_of(os.rmdir, top)), ("ENOTEMPTY", [], "OK"))


# names


@case("names", (1, 2, 3, 8, 15, 16, 63, 64, 127, 128, 200, 254, 255))
def name_length_ok(c: Context, length: int):
    """A name of each length can be made, found, listed, renamed and removed."""
    name = "n" * length
    os.mkdir("d")
    open(f"d/{name}", "w").close()
    seen = os.listdir("d") == [name]
    os.rename(f"d/{name}", f"d/{'m' * length}")
    os.unlink(f"d/{'m' * length}")
    return same((seen, os.listdir("d")), (True, []))


@case("names", (256, 300, 1024, 4094))
def name_length_too_long(c: Context, length: int):
    name, good = "n" * length, c.file()
    calls = (
        lambda: os.open(name, os.O_CREAT | os.O_WRONLY),
        lambda: os.mkdir(name),
        lambda: os.symlink("x", name),
        lambda: os.link(good, name),
        lambda: os.rename(good, name),
        lambda: os.rename(name, good),
        lambda: os.stat(name),
        lambda: os.unlink(name),
        lambda: os.rmdir(name),
        lambda: os.mknod(name),
        lambda: os.readlink(name),
        lambda: os.chmod(name, 0),
        lambda: os.truncate(name, 0),
        lambda: os.stat(f"{name}/x"),
    )
    return same({c.errno_of(call) for call in calls}, {"ENAMETOOLONG"})


@case("names")
def name_length_counts_bytes(c: Context):
    """255 is a number of bytes: 85 three-byte characters fit, 86 do not."""
    return same([c.errno_of(os.mkdir, "€" * n) for n in (85, 86)], ["OK", "ENAMETOOLONG"])


@case("names")
def path_length(c: Context):
    """A path of 4095 bytes is taken, one of 4096 is not."""
    top = c.file()
    return same(
        [c.errno_of(os.stat, "./" * n + top) for n in ((4095 - len(top)) // 2, (4097 - len(top)) // 2)],
        ["OK", "ENAMETOOLONG"],
    )


@case("names")
def every_byte(c: Context):
    """Every byte but NUL and the slash alone, doubled and in the middle of a name."""
    os.mkdir("d")
    made = set()
    for value in range(1, 256):
        if value == 0x2F:
            continue
        for name in (bytes([value]), bytes([value]) * 2, b"x" + bytes([value]) + b"y"):
            if name in (b".", b".."):
                continue
            os.mknod(b"d/" + name, stat.S_IFREG | 0o644)
            made.add(name)
    same(set(os.listdir(b"d")) == made, True)
    return same(all(os.path.exists(b"d/" + name) for name in made), True)


@case(
    "names",
    {
        "utf8": "дача-日本語-🐧".encode(),
        "latin1": b"caf\xe9",
        "newline": b"a\nb",
        "spaces": b"  a  ",
        "backslash": b"a\\b",
        "invalid_utf8": b"\xff\xfe\x80",
        "nfd": b"e\xcc\x81",
        "dash": b"-rf",
        "dots": b"...",
        "dot_suffix": b"a.",
        "star": b"*?[",
    },
)
def odd_name(c: Context, name: bytes):
    """Made, listed and read back byte for byte, as file, directory, symlink and hard link."""
    os.mkdir("d")
    os.mkdir(b"d/" + name)
    os.mkdir("e")
    os.symlink(name, b"e/" + name)
    os.mkdir("f")
    with open(b"f/" + name, "wb") as handle:
        handle.write(name)
    os.mkdir("g")
    os.link(b"f/" + name, b"g/" + name)
    listed = [os.listdir(d) for d in (b"d", b"e", b"f", b"g")]
    return same((listed, os.readlink(b"e/" + name), c.data(b"g/" + name)), ([[name]] * 4, name, name))


@case("names")
def case_and_normal_form_matter(c: Context):
    names = [b"a", b"A", b"\xc3\xa9", b"e\xcc\x81", b"a ", b" a"]
    os.mkdir("d")
    for name in names:
        os.mkdir(b"d/" + name)
    return same(sorted(os.listdir(b"d")), sorted(names))


@case("names")
def trailing_slash(c: Context):
    """A trailing slash asks for a directory."""
    name, top = c.file(b"x"), c.dir()
    os.symlink(name, "to-file")
    os.symlink(top, "to-dir")
    os.symlink("nowhere", "dangling")
    got = {
        "stat": [c.errno_of(os.lstat, f"{p}/") for p in (name, top, "to-file", "to-dir", "dangling", "none")],
        "unlink": c.errno_of(os.unlink, f"{name}/"),
        "creat": c.errno_of(lambda: os.open("fresh/", os.O_CREAT | os.O_WRONLY)),
        "link": c.errno_of(os.link, name, "fresh/"),
        "symlink": c.errno_of(os.symlink, name, "fresh/"),
        "rename": [c.errno_of(os.rename, name, "fresh/"), c.errno_of(os.rename, top, "fresh/")],
    }
    same(got["stat"], ["ENOTDIR", "OK", "ENOTDIR", "OK", "ENOENT", "ENOENT"])
    same((got["unlink"], got["rename"]), ("ENOTDIR", ["ENOTDIR", "OK"]))
    return got


CALLS = {
    "open": lambda p: os.close(os.open(p, os.O_RDONLY)),
    "creat": lambda p: os.close(os.open(p, os.O_CREAT | os.O_WRONLY)),
    "stat": os.stat,
    "lstat": os.lstat,
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "readlink": os.readlink,
    "symlink": lambda p: os.symlink("x", p),
    "link_to": lambda p: os.link("/dev/null" if p is None else "good", p),
    "link_from": lambda p: os.link(p, "fresh"),
    "rename_to": lambda p: os.rename("good", p),
    "rename_from": lambda p: os.rename(p, "fresh"),
    "mknod": os.mknod,
    "mkfifo": os.mkfifo,
    "chmod": lambda p: os.chmod(p, 0o644),
    "chown": lambda p: os.chown(p, 0, 0),
    "lchown": lambda p: os.lchown(p, 0, 0),
    "truncate": lambda p: os.truncate(p, 0),
    "utime": lambda p: os.utime(p, ns=(0, 0)),
    "access": lambda p: os.stat(p) and os.access(p, os.R_OK),
    "listdir": os.listdir,
    "statvfs": os.statvfs,
    "getxattr": lambda p: os.getxattr(p, "trusted.x"),
    "setxattr": lambda p: os.setxattr(p, "trusted.x", b""),
    "listxattr": os.listxattr,
}
WAYS = ("missing/x", "file/x", "loop", "loop/x", "dangling/x")


@case("paths", CALLS)
def bad_path(c: Context, call):
    """errno of each call below a missing directory, a file, a symlink loop and a dangling symlink."""
    for name in ("file", "good"):
        open(name, "w").close()
    os.symlink("loop", "loop")
    os.symlink("nowhere", "dangling")
    got = {way: c.errno_of(call, way) for way in WAYS if not (way == "loop" and call in LOOP_IS_OBJECT)}
    same(
        [got[w] for w in ("missing/x", "file/x", "loop/x", "dangling/x")],
        ["ENOENT", "ENOTDIR", "ELOOP", "ENOENT"],
    )
    return got


LOOP_IS_OBJECT = {
    CALLS[k] for k in ("rename_to", "rename_from", "unlink", "link_from", "lchown", "lstat", "readlink")
}


@case("paths", CALLS)
def no_search_permission(c: Context, call):
    """EACCES for each call below a directory without search permission, as uid 65534."""
    os.chmod(".", 0o777)
    os.mkdir("shut", 0o700)
    open("shut/x", "w").close()

    def attempt():
        open("good", "w").close()
        return c.errno_of(call, "shut/x")

    return same(c.as_nobody(attempt), "EACCES")


@case("paths")
def empty_path(c: Context):
    calls = (os.stat, os.mkdir, os.rmdir, os.unlink, os.listdir, os.readlink)
    return same({c.errno_of(call, "") for call in calls}, {"ENOENT"})


@case("paths")
def deep_tree(c: Context):
    """200 directories deep: made, reached from the bottom by "..", removed."""
    here = os.getcwd()
    for i in range(200):
        os.mkdir(f"level{i}")
        os.chdir(f"level{i}")
    up = os.stat("../" * 200).st_ino == os.stat(here).st_ino
    for i in reversed(range(200)):
        os.chdir("..")
        os.rmdir(f"level{i}")
    return same((up, os.listdir(".")), (True, []))


@case("paths")
def dot_and_dotdot(c: Context):
    os.makedirs("a/b")
    inode = lambda p: os.stat(p).st_ino  # noqa: E731
    got = [inode(p) == inode(q) for p, q in (("a/b/..", "a"), ("a/b/.", "a/b"), ("a/b/../..", "."))]
    return same(got, [True] * 3)


@case("paths", compare=False)
def link_count_of_big_directory(c: Context):
    """1200 subdirectories count as 1202 links, or as 1 where a file system stops counting."""
    top = c.dir()
    for i in range(1200):
        os.mkdir(f"{top}/{i}")
    among(os.stat(top).st_nlink, (1202, 1))
