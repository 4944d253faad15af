# SPDX-License-Identifier: MIT
"""Cases: reading directories, while names come and go too."""

import os
import stat

from .context import Context, same
from .native import Dir, getdents
from .table import case

DT = {"file": 8, "dir": 4, "symlink": 10, "fifo": 1, "sock": 12, "chr": 2}


def _fill(top: str, count: int, stem: str = "name") -> set[bytes]:
    names = set()
    for i in range(count):
        name = f"{stem}-{i:05d}"
        os.mknod(f"{top}/{name}", stat.S_IFREG | 0o644)
        names.add(name.encode())
    return names


def _split(names: list[bytes]) -> tuple[set[bytes], int]:
    """(names without the dots, how many came more than once)."""
    return set(names) - {b".", b".."}, len(names) - len(set(names))


@case("readdir", (0, 1, 2, 10, 100, 1000, 3000))
def lists_everything_once(c: Context, count: int):
    top = c.dir()
    want = _fill(top, count)
    with Dir(top) as stream:
        names = [name for name, _, _ in stream]
    got, repeated = _split(names)
    return same((got == want, repeated, len(names)), (True, 0, count + 2))


@case("readdir")
def dots_are_there(c: Context):
    """ "." and ".." come once each, with the right inode numbers."""
    top = c.dir()
    with Dir(top) as stream:
        rows = {name: inode for name, inode, _ in stream}
    return same(
        (sorted(rows), rows[b"."] == os.stat(top).st_ino, rows[b".."] == os.stat(".").st_ino),
        ([b".", b".."], True, True),
    )


@case("readdir", list(DT))
def type_and_inode(c: Context, kind: str):
    """d_type is right or unknown, d_ino is st_ino."""
    name = c.thing(kind)
    with Dir(".") as stream:
        inode, entry_type = next((i, t) for n, i, t in stream if n == os.fsencode(name))
    return same((inode == os.lstat(name).st_ino, entry_type), (True, DT[kind]))


@case("readdir", (24, 32, 64, 280, 1000, 4096, 100_000))
def buffers_of_every_size(c: Context, size: int):
    """getdents with small and large buffers gives the same names; too small a buffer is EINVAL."""
    top = c.dir()
    want = _fill(top, 300)
    names: list[bytes] = []
    with c.open(top, os.O_RDONLY) as fd:
        first = c.errno_of(getdents, fd, size)
        if first != "OK":
            return same(first, "EINVAL"), size < 40
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            while part := getdents(fd, size):
                names += part
        except OSError:
            return same(size < 40, True, "EINVAL with a buffer that holds an entry"), True
    got, repeated = _split(names)
    return same((got == want, repeated), (True, 0)), False


@case("readdir", {"all": 1, "half": 2, "tenth": 10})
def deleting_while_reading(c: Context, every: int):
    """Deleting names that were just read neither skips nor repeats the rest (what rm -r does)."""
    top = c.dir()
    want = _fill(top, 2000)
    names = []
    with Dir(top) as stream:
        for i, (name, _, _) in enumerate(stream):
            names.append(name)
            if name not in (b".", b"..") and i % every == 0:
                os.unlink(os.fsencode(top) + b"/" + name)
    got, repeated = _split(names)
    return same((got == want, repeated), (True, 0))


@case("readdir")
def deleting_ahead(c: Context):
    """Of names deleted before they were reached each may still come or not; the others come once each."""
    top = c.dir()
    want = _fill(top, 2000)
    names = []
    with Dir(top) as stream:
        for i, (name, _, _) in enumerate(stream):
            names.append(name)
            if i == 50:
                gone = {n for n in want if n not in names and int(n[-5:]) % 3 == 0}
                for n in gone:
                    os.unlink(os.fsencode(top) + b"/" + n)
    got, repeated = _split(names)
    return same((want - gone <= got <= want, repeated), (True, 0))


@case("readdir")
def adding_while_reading(c: Context):
    """Names that come while reading appear once or not at all; the old ones once each."""
    top = c.dir()
    want, added, names = _fill(top, 1000), set(), []
    with Dir(top) as stream:
        for i, (name, _, _) in enumerate(stream):
            names.append(name)
            if i % 2 and len(added) < 1000:
                new = f"added-{i:05d}"
                os.mknod(f"{top}/{new}", stat.S_IFREG | 0o644)
                added.add(new.encode())
    got, repeated = _split(names)
    return same((want <= got <= want | added, repeated), (True, 0))


@case("readdir")
def coming_and_going(c: Context):
    """A mix of unlink, create and rename of other names while reading: the untouched ones come once each."""
    top = c.dir()
    stay, leave = _fill(top, 800, "stay"), sorted(_fill(top, 800, "leave"))
    names = []
    with Dir(top) as stream:
        for i, (name, _, _) in enumerate(stream):
            names.append(name)
            if leave:
                victim = f"{top}/{leave.pop().decode()}"
                if i % 3 == 0:
                    os.unlink(victim)
                elif i % 3 == 1:
                    os.rename(victim, f"{top}/moved-{i:05d}")
                else:
                    os.mknod(f"{top}/new-{i:05d}", stat.S_IFREG | 0o644)
    kept = [n for n in names if n.startswith(b"stay")]
    return same((set(kept) == stay, len(kept)), (True, 800))


@case("readdir")
def renaming_onto_each_other(c: Context):
    """Names replaced by rename while reading still come once each."""
    top = c.dir()
    want = _fill(top, 500)
    names = []
    with Dir(top) as stream:
        for name, _, _ in stream:
            names.append(name)
            if name in want:
                other = c.file()
                os.rename(other, os.fsdecode(os.fsencode(top) + b"/" + name))
    old = [n for n in names if n in want]
    return same(set(old) == want, True)


@case("readdir")
def rewind_sees_changes(c: Context):
    top = c.dir()
    _fill(top, 10)
    with Dir(top) as stream:
        first = {n for n, _, _ in stream}
        os.unlink(f"{top}/name-00003")
        os.mkdir(f"{top}/new")
        stream.rewind()
        second = {n for n, _, _ in stream}
    return same((first - second, second - first), ({b"name-00003"}, {b"new"}))


@case("readdir", (5, 200, 1500))
def tell_and_seek(c: Context, count: int):
    """Every position leads back to the entry that came after it, in any order."""
    top = c.dir()
    _fill(top, count)
    marks = []
    with Dir(top) as stream:
        while True:
            position = stream.tell()
            entry = stream.read()
            if entry is None:
                break
            marks.append((position, entry[0]))
        bad = 0
        for position, name in marks[:: max(1, count // 50)][::-1] + marks[:5]:
            stream.seek(position)
            entry = stream.read()
            bad += entry is None or entry[0] != name
    return same((len(marks), bad), (count + 2, 0))


@case("readdir")
def seek_after_deletions(c: Context):
    """A position stays good while other names go: from there the rest comes, without repeats."""
    top = c.dir()
    want = _fill(top, 500)
    with Dir(top) as stream:
        before = [stream.read()[0] for _ in range(200)]
        position = stream.tell()
        for name in before:
            if name not in (b".", b".."):
                os.unlink(os.fsencode(top) + b"/" + name)
        list(stream)
        stream.seek(position)
        rest = [name for name, _, _ in stream]
    got, repeated = _split(rest)
    return same((got == want - set(before), repeated), (True, 0))


@case("readdir")
def end_stays_the_end(c: Context):
    """After the end the end comes again; two streams keep their own place."""
    top = c.dir()
    _fill(top, 50)
    with Dir(top) as one, Dir(top) as two:
        first = one.read()[0]
        whole = len(list(two))
        again = two.read()
        left = len(list(one))
    return same((bool(first), whole, again, left), (True, 52, None, 51))


@case("readdir")
def long_names(c: Context):
    """300 names of 255 bytes."""
    top = c.dir()
    want = {f"{i:03d}".encode() + b"L" * 252 for i in range(300)}
    for name in want:
        os.mkdir(os.fsencode(top) + b"/" + name)
    return same((set(os.listdir(os.fsencode(top))) == want, os.stat(top).st_nlink), (True, 302))


@case("readdir")
def same_prefix_and_similar(c: Context):
    """Names that differ in one character, of the kind that makes hashes collide."""
    top = c.dir()
    want = {f"{a}{b}{'z' * n}" for a in "aA0_" for b in "bB1-" for n in (0, 1, 4, 60, 200)}
    for name in want:
        os.mkdir(f"{top}/{name}")
    return same((set(os.listdir(top)) == want, all(os.path.isdir(f"{top}/{n}") for n in want)), (True, True))


@case("readdir")
def create_delete_create(c: Context):
    """One name made and removed 500 times beside others that stay."""
    top = c.dir()
    want = _fill(top, 20)
    for _ in range(500):
        os.mknod(f"{top}/again", stat.S_IFREG | 0o644)
        os.unlink(f"{top}/again")
    return same(set(os.listdir(os.fsencode(top))) == want, True)


@case("readdir")
def scandir_stat(c: Context):
    """scandir's types and stat agree with lstat for each kind."""
    for kind in DT:
        c.thing(kind)
    wrong = [
        e.name
        for e in os.scandir(".")
        if (e.is_dir(follow_symlinks=False), e.is_symlink(), e.inode())
        != (
            stat.S_ISDIR(os.lstat(e.name).st_mode),
            stat.S_ISLNK(os.lstat(e.name).st_mode),
            os.lstat(e.name).st_ino,
        )
    ]
    return same(wrong, [])


@case("readdir", ("file", "fifo", "sock", "absent"))
def opendir_on(c: Context, kind: str):
    want = "ENOENT" if kind == "absent" else "ENOTDIR"
    return same((c.errno_of(os.listdir, c.thing(kind)), c.errno_of(Dir, c.path())), (want, "ENOENT"))


@case("readdir")
def concurrent_creators(c: Context):
    """Four processes make 200 names each in one directory, two others list it meanwhile."""
    top = c.dir()

    def maker(stem: str) -> int:
        return len(_fill(top, 200, stem))

    def lister() -> int:
        bad = 0
        for _ in range(10):
            names = os.listdir(top)
            bad += len(names) != len(set(names))
        return bad

    joins = [c.start(lambda s=s: maker(s)) for s in "abcd"] + [c.start(lister) for _ in range(2)]
    results = [join() for join in joins]
    return same((results, len(os.listdir(top))), ([200] * 4 + [0] * 2, 800))


@case("readdir")
def concurrent_mixed(c: Context):
    """Four processes make and remove names of their own in one directory; what should stay stays."""
    top = c.dir()

    def worker(stem: str) -> str:
        for i in range(150):
            os.mknod(f"{top}/{stem}{i}", stat.S_IFREG | 0o644)
            if i % 3:
                os.unlink(f"{top}/{stem}{i}")
        return "done"

    results = [join() for join in [c.start(lambda s=s: worker(s)) for s in "abcd"]]
    want = {f"{s}{i}" for s in "abcd" for i in range(0, 150, 3)}
    return same((results, set(os.listdir(top)) == want), (["done"] * 4, True))
