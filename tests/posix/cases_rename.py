# SPDX-License-Identifier: MIT
"""Cases: rename with and without flags."""

import os
import stat

from .context import NOBODY, Context, same
from .native import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2
from .table import case

KINDS = ("file", "dir", "full", "symlink", "fifo", "sock", "chr")
PAIRS = [(a, b) for a in (*KINDS, "absent") for b in (*KINDS, "absent")]
DIRS = ("dir", "full")


def _look(name: str):
    """What is at a name: None, or its format and number of links."""
    if not os.path.lexists(name):
        return None
    s = os.lstat(name)
    return stat.S_IFMT(s.st_mode), s.st_nlink


def _plain_result(source: str, target: str) -> str:
    if source == "absent":
        return "ENOENT"
    if target == "absent" or (source not in DIRS and target not in DIRS):
        return "OK"
    if source not in DIRS:
        return "EISDIR"
    return {"dir": "OK", "full": "ENOTEMPTY"}.get(target, "ENOTDIR")


@case("rename", PAIRS)
def rename_kinds(c: Context, source: str, target: str):
    """Every kind onto every kind: the errno, and what is there afterwards."""
    old, new = c.thing(source), c.thing(target)
    before = _look(old), _look(new)
    result = same(c.errno_of(os.rename, old, new), _plain_result(source, target))
    after = _look(old), _look(new)
    return same((result, after), (result, (None, before[0]) if result == "OK" else before))


@case("rename", PAIRS)
def noreplace_kinds(c: Context, source: str, target: str):
    """RENAME_NOREPLACE never replaces."""
    old, new = c.thing(source), c.thing(target)
    before = _look(old), _look(new)
    result = c.errno_of(renameat2, old, new, RENAME_NOREPLACE)
    if source != "absent" or target == "absent":
        want = "EEXIST" if target != "absent" else "ENOENT" if source == "absent" else "OK"
        same(result, want)
    after = _look(old), _look(new)
    return same((result, after), (result, (None, before[0]) if result == "OK" else before))


@case("rename", PAIRS)
def exchange_kinds(c: Context, source: str, target: str):
    """RENAME_EXCHANGE swaps any two kinds, a directory and a file too."""
    old, new = c.thing(source), c.thing(target)
    inodes = [os.lstat(n).st_ino if os.path.lexists(n) else 0 for n in (old, new)]
    result = same(
        c.errno_of(renameat2, old, new, RENAME_EXCHANGE), "ENOENT" if "absent" in (source, target) else "OK"
    )
    after = [os.lstat(n).st_ino if os.path.lexists(n) else 0 for n in (old, new)]
    same(after, inodes[::-1] if result == "OK" else inodes)
    return result, _look(old), _look(new), os.stat(".").st_nlink


@case(
    "rename", {f"{a}-{b}": (a, b) for a in ("file", "dir", "full") for b in ("absent", "dir", "file", "full")}
)
def cross_directory(c: Context, source: str, target: str):
    """Between directories: link counts of both parents, and ".." of what moved."""
    os.mkdir("from")
    os.mkdir("to")
    os.rename(c.thing(source), "from/x")
    if target != "absent":
        os.rename(c.thing(target), "to/x")
    result = c.errno_of(os.rename, "from/x", "to/x")
    dotdot = "none"
    if result == "OK" and source in DIRS:
        dotdot = os.stat("to/x/..").st_ino == os.stat("to").st_ino
        same(dotdot, True, "..")
    counts = os.stat("from").st_nlink, os.stat("to").st_nlink
    if result == "OK":
        same(counts, (2, 3 if source in DIRS else 2), "nlink of the parents")
    return same(result, _plain_result(source, target)), counts, dotdot, _look("to/x"), os.listdir("from")


@case("rename", {f"{a}-{b}": (a, b) for a in ("file", "dir", "full") for b in ("file", "dir", "full")})
def exchange_cross_directory(c: Context, source: str, target: str):
    os.mkdir("from")
    os.mkdir("to")
    os.rename(c.thing(source), "from/x")
    os.rename(c.thing(target), "to/y")
    renameat2("from/x", "to/y", RENAME_EXCHANGE)
    for name, parent in (("from/x", "from"), ("to/y", "to")):
        if os.path.isdir(name):
            same(os.stat(f"{name}/..").st_ino, os.stat(parent).st_ino, "..")
    counts = os.stat("from").st_nlink, os.stat("to").st_nlink
    return same(counts, (2 + (target in DIRS), 2 + (source in DIRS)))


@case("rename", KINDS)
def over_itself(c: Context, kind: str):
    """Onto its own name nothing happens and it is no error."""
    name = c.thing(kind)
    before = _look(name)
    return same((c.errno_of(os.rename, name, name), _look(name) == before), ("OK", True))


@case("rename", KINDS)
def exchange_with_itself(c: Context, kind: str):
    name = c.thing(kind)
    return c.errno_of(renameat2, name, name, RENAME_EXCHANGE), _look(name)


@case("rename")
def over_hard_link_of_same_inode(c: Context):
    """Two names of one file: rename does nothing, both stay."""
    name = c.file(b"x")
    os.link(name, "other")
    os.rename(name, "other")
    return same((os.path.exists(name), os.stat("other").st_nlink), (True, 2))


@case("rename")
def over_hard_link_in_other_directory(c: Context):
    name = c.file(b"x")
    os.mkdir("d")
    os.link(name, "d/other")
    os.rename(name, "d/other")
    return same((os.path.exists(name), os.stat("d/other").st_nlink), (True, 2))


@case("rename")
def exchange_of_hard_links(c: Context):
    name = c.file(b"x")
    os.link(name, "other")
    return same((c.errno_of(renameat2, name, "other", RENAME_EXCHANGE), os.stat(name).st_nlink), ("OK", 2))


@case("rename")
def replaced_loses_a_link(c: Context):
    victim = c.file(b"victim")
    os.link(victim, "spare")
    os.rename(c.file(b"new"), victim)
    return same((c.data(victim), c.data("spare"), os.stat("spare").st_nlink), (b"new", b"victim", 1))


@case("rename", {"into_self": "a/x", "into_child": "a/b/x", "onto_child": "a/b", "deep": "a/b/c/d/x"})
def into_own_subtree(c: Context, target: str):
    """A directory can't go below itself."""
    os.makedirs("a/b/c/d")
    return same(c.errno_of(os.rename, "a", target), "EINVAL")


@case("rename", {"child": "a/b", "deep": "a/b/c"})
def onto_own_ancestor(c: Context, source: str):
    """Onto a directory that holds it: not empty."""
    os.makedirs("a/b/c")
    return same(c.errno_of(os.rename, source, "a"), "ENOTEMPTY")


@case("rename")
def exchange_with_own_ancestor(c: Context):
    os.makedirs("a/b/c")
    got = [
        c.errno_of(renameat2, "a", "a/b", RENAME_EXCHANGE),
        c.errno_of(renameat2, "a/b/c", "a", RENAME_EXCHANGE),
    ]
    return same(got, ["EINVAL", "EINVAL"])


@case("rename")
def flags_that_exclude_each_other(c: Context):
    one, two = c.file(), c.file()
    got = [c.errno_of(renameat2, one, two, flags) for flags in (RENAME_NOREPLACE | RENAME_EXCHANGE, 1 << 20)]
    return same(got, ["EINVAL", "EINVAL"])


@case("rename")
def of_dot_and_dotdot(c: Context):
    os.makedirs("a/b")
    paths = (("a/.", "z"), ("a/..", "z"), ("a/b", "a/."), ("a/b", "a/.."), (".", "z"))
    return same({c.errno_of(os.rename, x, y) for x, y in paths}, {"EBUSY"})


@case("rename")
def across_file_systems(c: Context):
    got = [c.errno_of(os.rename, c.thing(k), f"{c.elsewhere}/x") for k in ("file", "dir", "symlink")]
    return same(got, ["EXDEV"] * 3)


@case("rename")
def bad_parents(c: Context):
    name = c.file()
    paths = ((name, "none/x"), ("none/x", name), (name, f"{name}/x"), (f"{name}/x", "y"))
    return same([c.errno_of(os.rename, a, b) for a, b in paths], ["ENOENT", "ENOENT", "ENOTDIR", "ENOTDIR"])


@case("rename")
def open_descriptor_follows(c: Context):
    """A descriptor keeps its file through rename; the new name shows what it writes."""
    name = c.file(b"abc")
    with c.open(name, os.O_RDWR) as fd:
        os.rename(name, "moved")
        os.pwrite(fd, b"X", 0)
    return same((c.data("moved"), os.path.exists(name)), (b"Xbc", False))


@case("rename")
def open_directory_follows(c: Context):
    os.mkdir("d")
    fd = os.open("d", os.O_RDONLY)
    os.rename("d", "e")
    os.mkdir("inside", dir_fd=fd)
    os.close(fd)
    return same(os.listdir("e"), ["inside"])


@case("rename")
def paths_below_follow(c: Context):
    """Names below a renamed directory answer at the new path, not at the old one, also after look-ups."""
    os.makedirs("a/b/c")
    with open("a/b/c/f", "w") as handle:
        handle.write("deep")
    os.stat("a/b/c/f")
    os.rename("a", "z")
    got = [c.data("z/b/c/f"), c.errno_of(os.stat, "a/b/c/f")]
    os.makedirs("a/b/c")
    got.append(c.errno_of(os.stat, "a/b/c/f"))
    os.rename("z/b/c", "a/b/c")
    return same([*got, c.data("a/b/c/f"), os.listdir("z/b")], [b"deep", "ENOENT", "ENOENT", b"deep", []])


@case("rename")
def swap_by_three(c: Context):
    """The classic exchange over a third name, 100 times."""
    for name in "ab":
        with open(name, "w") as handle:
            handle.write(name)
    for _ in range(101):
        os.rename("a", "t")
        os.rename("b", "a")
        os.rename("t", "b")
    return same((c.data("a"), c.data("b"), sorted(os.listdir("."))), (b"b", b"a", ["a", "b"]))


@case("rename")
def long_and_short_names(c: Context):
    name = c.file(b"x")
    for length in (255, 1, 254, 100, 255):
        os.rename(name, "r" * length)
        name = "r" * length
    return same(os.listdir("."), ["r" * 255])


@case("rename")
def directory_back_and_forth(c: Context):
    """A directory that changes its parent many times keeps the counts right."""
    os.makedirs("a/x/sub")
    os.mkdir("b")
    for _ in range(25):
        os.rename("a/x", "b/x")
        os.rename("b/x", "a/x")
    counts = [os.stat(p).st_nlink for p in ("a", "b", "a/x")]
    return same((counts, os.stat("a/x/..").st_ino == os.stat("a").st_ino), ([3, 2, 3], True))


@case("rename")
def atomic_for_readers(c: Context):
    """While one process replaces a name over and over, another always finds it, whole."""

    def put(text: str) -> None:
        with open("tmp", "w") as handle:
            handle.write(text * 500)
        os.rename("tmp", "name")

    put("0")

    def look() -> int:
        bad = 0
        for _ in range(300):
            try:
                data = c.data("name")
            except OSError:
                bad += 1
                continue
            bad += len(data) != 500 or len(set(data)) != 1
        return bad

    join = c.start(look)
    for i in range(300):
        put(str(i % 10))
    return same(join(), 0)


# permissions


@case("rename")
def needs_write_on_both_parents(c: Context):
    got = []
    for i, modes in enumerate(((0o777, 0o755), (0o755, 0o777), (0o777, 0o777), (0o777, 0o666))):
        for side, mode in zip("fs", modes, strict=True):
            os.mkdir(f"{side}{i}")
            os.chmod(f"{side}{i}", mode)
        with open(f"f{i}/x", "w"):
            pass
        got.append(c.as_nobody(lambda i=i: os.rename(f"f{i}/x", f"s{i}/x")))
    return same(got, ["EACCES", "EACCES", None, "EACCES"])


@case("rename")
def directory_of_other_owner_changes_parent(c: Context):
    """Moving someone else's directory needs write permission on it, for its ".." changes."""
    for name in ("f", "s"):
        os.mkdir(name)
        os.chmod(name, 0o777)
    os.mkdir("f/x", 0o755)
    os.mkdir("f/y", 0o777)
    os.chmod("f/y", 0o777)
    got = [c.as_nobody(lambda n=n: os.rename(f"f/{n}", f"s/{n}")) for n in "xy"]
    got.append(c.as_nobody(lambda: os.rename("f/x", "f/z")))
    return same(got, ["EACCES", None, None])


@case(
    "rename",
    {
        f"{d}_{s}_{t}": (d, s, t)
        for d in ("nobody", "root")
        for s in ("nobody", "root")
        for t in ("nobody", "root", "none")
    },
)
def sticky(c: Context, directory: str, source: str, target: str):
    """In a sticky directory only the owner of the entry or of the directory renames or replaces."""
    owner = {"nobody": NOBODY, "root": 0}
    os.mkdir("d")
    os.chmod("d", 0o1777)
    with open("d/s", "w"):
        os.chown("d/s", owner[source], 0)
    if target != "none":
        with open("d/t", "w"):
            os.chown("d/t", owner[target], 0)
    os.chown("d", owner[directory], 0)
    allowed = directory == "nobody" or (source == "nobody" and target in ("nobody", "none"))
    return same(c.as_nobody(lambda: os.rename("d/s", "d/t")), None if allowed else "EPERM")


@case("rename")
def sticky_unlink(c: Context):
    """The same rule for unlink and rmdir."""
    os.mkdir("d")
    os.chmod("d", 0o1777)
    for name, owner in (("mine", NOBODY), ("roots", 0), ("other", 77)):
        with open(f"d/{name}", "w"):
            os.chown(f"d/{name}", owner, owner)
        os.mkdir(f"d/{name}-dir")
        os.chown(f"d/{name}-dir", owner, owner)
    got = [c.as_nobody(lambda n=n: os.unlink(f"d/{n}")) for n in ("mine", "roots", "other")]
    got += [c.as_nobody(lambda n=n: os.rmdir(f"d/{n}-dir")) for n in ("mine", "roots", "other")]
    return same(got, [None, "EPERM", "EPERM"] * 2)


# whiteouts


@case("rename", ("file", "dir", "full", "symlink", "fifo"))
def whiteout(c: Context, kind: str):
    """RENAME_WHITEOUT leaves a character device 0/0 without permissions at the old name."""
    old, new = c.thing(kind), c.path()
    number = os.lstat(old).st_ino
    renameat2(old, new, RENAME_WHITEOUT)
    left = os.lstat(old)
    same((left.st_mode, left.st_rdev, left.st_nlink), (stat.S_IFCHR, 0, 1))
    same((os.lstat(new).st_ino, left.st_ino != number), (number, True))
    os.unlink(old)
    return same((os.path.lexists(old), os.path.lexists(new)), (False, True))


@case("rename")
def whiteout_over_and_flags(c: Context):
    """Over a name; with NOREPLACE; not with EXCHANGE; of two names of one file nothing."""
    one, two, three = c.file(b"1"), c.file(b"2"), c.file(b"3")
    renameat2(one, two, RENAME_WHITEOUT)
    got = [c.data(two), stat.S_ISCHR(os.lstat(one).st_mode)]
    got.append(c.errno_of(renameat2, two, three, RENAME_WHITEOUT | RENAME_NOREPLACE))
    got.append(c.errno_of(renameat2, two, three, RENAME_WHITEOUT | RENAME_EXCHANGE))
    renameat2(two, c.path(), RENAME_WHITEOUT | RENAME_NOREPLACE)
    got.append(stat.S_ISCHR(os.lstat(two).st_mode))
    os.link(three, "other")
    renameat2(three, "other", RENAME_WHITEOUT)
    got.append(os.stat(three).st_nlink)
    return same(got, [b"1", True, "EEXIST", "EINVAL", True, 2])


@case("rename")
def whiteout_of_nobody(c: Context):
    """Needs no privilege, belongs to who renamed, with the group of a setgid directory."""
    top = c.dir(0o777)
    os.chown(top, 0, 77)
    os.chmod(top, 0o2777)

    def move():
        with open(f"{top}/a", "x"):
            pass
        renameat2(f"{top}/a", f"{top}/b", RENAME_WHITEOUT)

    c.as_nobody(move)
    s = os.lstat(f"{top}/a")
    return same((s.st_uid, s.st_gid, sorted(os.listdir(top))), (NOBODY, 77, ["a", "b"]))
