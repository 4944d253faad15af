# SPDX-License-Identifier: MIT
"""Cases of direct mappings: what is done to a mapped file, and its times."""

import os

from . import memory as m
from .context import Context, same
from .direct_memory import _pages
from .memory import HUGE, PAGE, PRIVATE, SHARED, Map
from .native import fallocate
from .table import case

KEEP, PUNCH, ZERO = 1, 2, 16
SIZES = {"odd": 3 * PAGE + 17, "2MiB": HUGE, "3MiB": 3 * (1 << 20) + 1}


def _fates(c: Context, page: Map, places) -> list:
    """The byte at each place, or the signal that a look at it brings."""
    return [c.in_child(lambda at=at: page.load(at)) for at in places]


@case("truncate", SIZES)
def cut_under_a_mapping(c: Context, size: int):
    """Cut to each of some lengths and grown again: SIGBUS behind the end, zeros where something was cut."""
    name = c.file(b"x" * size)
    pages = (size + PAGE - 1) // PAGE
    got = []
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, pages * PAGE)
        page.load(0, pages * PAGE)
        for length in sorted({0, 100, PAGE, PAGE + 1, size // 2, size - 1}, reverse=True):
            if length >= size:
                continue
            page.store(b"y" * 50)
            os.ftruncate(fd, length)
            last = (length + PAGE - 1) // PAGE * PAGE
            got.append((length, _fates(c, page, sorted({0, max(length - 1, 0), min(length, pages * PAGE - 1),
                                                        min(last, pages * PAGE - 1), pages * PAGE - 1}))))
            os.ftruncate(fd, size)
            got.append((page.load(0, size).count(0), page.load(max(length - 3, 0), min(6, size - length))))
            os.pwrite(fd, b"x" * size, 0)
    return got


@case("truncate", {"private": PRIVATE, "shared": SHARED})
def cut_takes_private_copies(c: Context, kind: int):
    """Copies of private pages behind the new end go as well."""
    with c.open(c.file(_pages(3)), os.O_RDWR) as fd:
        page = Map(fd, 3 * PAGE, kind)
        page.store(b"copy", PAGE)
        page.store(b"copy", 2 * PAGE)
        os.ftruncate(fd, PAGE + 2)
        first = _fates(c, page, (0, PAGE, PAGE + 2, 2 * PAGE))
        os.ftruncate(fd, 3 * PAGE)
        return first, _fates(c, page, (0, PAGE, PAGE + 2, 2 * PAGE))


@case("truncate", compare=False)
def store_behind_the_end_of_file(c: Context):
    """What is stored in the last page behind the end is never seen by a reader, whatever grows the file.

    A tmpfs shows it (Linux 6.18); file systems on disks do not, nor does daxfs.
    """
    name = c.file(b"a" * 100)
    got = []
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, PAGE)
        for grow in (lambda: os.ftruncate(fd, 300), lambda: os.pwrite(fd, b"b", 500),
                     lambda: fallocate(fd, 0, 0, 800), lambda: os.ftruncate(fd, 3 * PAGE)):
            size = os.fstat(fd).st_size
            page.store(b"Z" * 50, size + 10)
            seen_before = os.pread(fd, PAGE, size)
            grow()
            got.append((seen_before, os.pread(fd, 4 * PAGE, 0).count(b"Z"), os.fstat(fd).st_size))
    if c.fstype != "tmpfs":
        same([row[:2] for row in got], [(b"", 0)] * 4)
    return same([row[2] for row in got], [300, 501, 800, 3 * PAGE])


@case("truncate")
def append_over_what_was_stored_behind(c: Context):
    name = c.file(b"a" * 100)
    with c.open(name, os.O_RDWR | os.O_APPEND) as fd:
        page = Map(fd, PAGE)
        page.store(b"Z" * 200, 100)
        os.write(fd, b"b" * 50)
        return same((os.pread(fd, PAGE, 100), os.fstat(fd).st_size), (b"b" * 50, 150))


@case("punch", {"page": (PAGE, PAGE), "odd": (100, 3 * PAGE), "inside": (PAGE + 10, 100),
                "2MiB": (HUGE, HUGE), "odd2MiB": (HUGE - 1, HUGE + 2), "end": (2 * HUGE, 2 * HUGE)})
def punched_under_a_mapping(c: Context, at: int, size: int):
    """A hole under mappings, shared and private, huge or not: zeros, and stores make it data again."""
    total = 2 * HUGE + 3 * PAGE
    with c.open(c.file(b"x" * total), os.O_RDWR) as fd:
        page, private = Map(fd, total), Map(fd, total, PRIVATE)
        page.load(0, total)
        private.store(b"mine", at & -PAGE)
        fallocate(fd, PUNCH | KEEP, at, size)
        end = min(at + size, total)
        want = b"x" * at + bytes(end - at) + b"x" * (total - end)
        right = page.load(0, total) == want, os.pread(fd, total, 0) == want
        kept = private.load(at & -PAGE, 4)
        page.store(b"again", at)
        got = os.pread(fd, 5, at)
    return same((*right, got), (True, True, b"again")), kept


@case("punch", {"keep": (KEEP, 4 * PAGE, 4 * PAGE),
                "grow": (0, 2 * PAGE, 8 * PAGE)})
def other_fallocates_under_a_mapping(c: Context, mode: int, at: int, size: int):
    name = c.file(_pages(4))
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, 12 * PAGE)
        page.store(b"stored", PAGE)
        error = c.errno_of(fallocate, fd, mode, at, size)
        return error, os.fstat(fd).st_size, _fates(c, page, (0, 5 * PAGE, 11 * PAGE)), os.pread(fd, 6, PAGE)


@case("punch", may_lack=("tmpfs",), compare=False)
def zero_range_under_a_mapping(c: Context):
    """FALLOC_FL_ZERO_RANGE, which tmpfs has not: as a punch, for who has it mapped."""
    from .table import Unsupported
    with c.open(c.file(_pages(4)), os.O_RDWR) as fd:
        page = Map(fd, 8 * PAGE)
        page.store(b"stored", 0)
        try:
            fallocate(fd, ZERO, 3, 2 * PAGE)
        except OSError as error:
            raise Unsupported("ZERO_RANGE") from error
        first = page.load(0, 4 * PAGE)
        fallocate(fd, ZERO, 3 * PAGE, 3 * PAGE)
        second = page.load(0, 6 * PAGE), os.fstat(fd).st_size
    want = b"sto" + bytes(2 * PAGE) + b"C" * (PAGE - 3) + b"D" * PAGE
    same(first == want, True)
    return same((second[0] == want[: 3 * PAGE] + bytes(3 * PAGE), second[1]), (True, 6 * PAGE))


@case("names", {"rename": "rename", "unlink": "unlink", "link": "link", "exchange": "exchange"})
def names_change_under_a_mapping(c: Context, how: str):
    """The mapping belongs to the inode, whatever happens to its names."""
    name, other = c.file(_pages(2)), c.file(b"other" * 1000)
    fd = os.open(name, os.O_RDWR)
    page = Map(fd, 2 * PAGE)
    os.close(fd)
    if how == "rename":
        os.rename(other, name)
    elif how == "unlink":
        os.unlink(name)
        os.rename(other, name)
    elif how == "link":
        os.link(name, "second")
        os.unlink(name)
    else:
        from .native import RENAME_EXCHANGE, renameat2
        renameat2(name, other, RENAME_EXCHANGE)
    page.store(b"stored", PAGE)
    for number in range(5):  # what could take the storage, if it had been given back
        c.file(bytes([number]) * 4 * PAGE)
    where = {"link": "second", "exchange": other}.get(how)
    got = page.load(0, 2) + page.load(PAGE, 6), where and c.data(where)[PAGE : PAGE + 6]
    return same(got, (b"AAstored", b"stored" if where else None)), os.path.exists(name) and c.data(name)[:5]


@case("names")
def hard_links_are_one_file(c: Context):
    """Two names opened, mapped and stored to: one file, and one descriptor may go before the other."""
    name = c.file(_pages(2))
    os.link(name, "second")
    with c.open(name, os.O_RDWR) as first, c.open("second", os.O_RDWR) as second:
        one, two = Map(first, 2 * PAGE), Map(second, 2 * PAGE)
        one.store(b"one", 0)
        two.store(b"two", PAGE)
        got = two.load(0, 3), one.load(PAGE, 3)
    os.unlink(name)
    one.store(b"1", 0)
    return same((got, c.data("second")[:3]), ((b"one", b"two"), b"1ne"))


# times, blocks, holes


@case("stores")
def times_after_stores(c: Context):
    """A store through a shared mapping moves mtime and ctime, at the latest with msync."""
    name = c.file(_pages(2))
    with c.open(name, os.O_RDWR) as fd:
        page, private = Map(fd, 2 * PAGE), Map(fd, 2 * PAGE, PRIVATE)

        def store():
            page.store(b"x")
            page.msync(m.MS_SYNC)

        first = c.changed(name, store)
        second = c.changed(name, lambda: private.store(b"y"))
        third = c.changed(name, lambda: page.load(PAGE))
        os.utime(name, ns=(10**9, 10**9))
        other = Map(fd, 2 * PAGE)
        by_hand = os.stat(name).st_mtime_ns
        c.tick()
        other.store(b"z", PAGE)
        other.msync(m.MS_SYNC)
        later = os.stat(name).st_mtime_ns > by_hand
        fstat = os.fstat(fd).st_mtime_ns == os.stat(name).st_mtime_ns
    return same((first, second, third, by_hand, later, fstat), ("mc", "", "", 10**9, True, True))


@case("stores")
def a_write_after_a_store_is_later(c: Context):
    """Times never go back: store, write, store, truncate, chmod, each by turns."""
    name = c.file(_pages(2))
    bad, last = [], os.stat(name)
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, 2 * PAGE)
        steps = {"store": lambda: page.store(b"x"), "write": lambda: os.pwrite(fd, b"y", 5),
                 "chmod": lambda: os.chmod(name, 0o600), "grow": lambda: os.ftruncate(fd, 4 * PAGE),
                 "store2": lambda: page.store(b"z", PAGE), "cut": lambda: os.ftruncate(fd, 2 * PAGE),
                 "punch": lambda: fallocate(fd, PUNCH | KEEP, 0, PAGE), "fsync": lambda: os.fsync(fd)}
        for what, step in steps.items():
            c.tick()
            step()
            now = os.stat(name)
            if now.st_mtime_ns < last.st_mtime_ns or now.st_ctime_ns < last.st_ctime_ns:
                bad.append(what)
            last = now
    after = os.stat(name)
    if (after.st_mtime_ns, after.st_ctime_ns) != (last.st_mtime_ns, last.st_ctime_ns):
        bad.append("close")
    return same(bad, [])


@case("stores")
def blocks_and_holes_after_stores(c: Context):
    """Stores into holes: st_blocks grows, SEEK_DATA finds them."""
    name = c.file()
    os.truncate(name, 64 * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, 64 * PAGE)
        for at in (3, 40):
            page.store(b"x", at * PAGE)
        blocks = os.fstat(fd).st_blocks
        found = [os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 3 * PAGE, os.SEEK_HOLE),
                 os.lseek(fd, 10 * PAGE, os.SEEK_DATA), c.errno_of(os.lseek, fd, 41 * PAGE, os.SEEK_DATA)]
        page.load(20 * PAGE)
        return blocks, found, os.fstat(fd).st_blocks


@case("stores")
def stores_without_a_descriptor(c: Context):
    """Closed before the first store: times, blocks, and what a copy finds."""
    name = c.file()
    os.truncate(name, 16 * PAGE)
    fd = os.open(name, os.O_RDWR)
    page = Map(fd, 16 * PAGE)
    os.close(fd)
    changed = c.changed(name, lambda: page.store(b"late", 9 * PAGE))
    status = os.stat(name)
    with c.open(name, os.O_RDONLY) as fd:
        data = os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 9 * PAGE, os.SEEK_HOLE)
    return same((changed, c.data(name)[9 * PAGE :][:5]), ("mc", b"late\0")), data, status.st_blocks


# copies by the kernel

PATHS = {"from": "from", "to": "to", "both": "both"}


def _pair(c: Context, which: str, size: int) -> tuple[str, str]:
    """Source and target of a copy, *size* zeros each: both on the mount, or one of them elsewhere."""
    inside, outside = c.file(bytes(size)), os.path.join(c.elsewhere, "file")
    with open(outside, "wb") as file:
        file.write(bytes(size))
    source = outside if which == "to" else inside
    return source, outside if which == "from" else c.file(bytes(size))


@case("kernel_copies", PATHS)
def sendfile(c: Context, which: str):
    """From and to a file of the mount whose mapping has newer bytes than any write."""
    size = 300_000
    source, target = _pair(c, which, size)
    with c.open(source, os.O_RDWR) as src, c.open(target, os.O_RDWR) as dst:
        one, two = Map(src, size), Map(dst, size)
        two.load(0, size)
        one.store(bytes(range(250)) * (size // 250))
        sent = 0
        while n := os.sendfile(dst, src, sent, size - sent):
            sent += n
        return same((sent, two.load(0, size) == one.load(0, size)), (size, True))


@case("kernel_copies", PATHS)
def splice(c: Context, which: str):
    size = 100_000
    source, target = _pair(c, which, size)
    reader, writer = os.pipe()
    with c.open(source, os.O_RDWR) as src, c.open(target, os.O_RDWR) as dst:
        one, two = Map(src, size), Map(dst, size)
        one.store(bytes(range(250)) * (size // 250))
        done = 0
        while done < size:
            got = os.splice(src, writer, min(size - done, 40_000), offset_src=done)
            put = 0
            while put < got:
                put += os.splice(reader, dst, got - put, offset_dst=done + put)
            done += got
        return same((done, two.load(0, size) == one.load(0, size)), (size, True))


@case("kernel_copies")
def copy_file_range(c: Context):
    """Between two mapped files and within one; holes and what was stored into them."""
    first, second = c.file(), c.file()
    os.truncate(first, 64 * PAGE)
    with c.open(first, os.O_RDWR) as src, c.open(second, os.O_RDWR) as dst:
        one = Map(src, 64 * PAGE)
        one.store(b"x" * 5000, 20 * PAGE + 100)
        got = [os.copy_file_range(src, dst, 64 * PAGE, 0, 0)]
        two = Map(dst, 64 * PAGE)
        equal = two.load(0, 64 * PAGE) == one.load(0, 64 * PAGE)
        got.append(os.copy_file_range(src, src, 4 * PAGE, 19 * PAGE, 40 * PAGE))
        return same((got, equal, one.load(41 * PAGE, 101)[-2:]), ([64 * PAGE, 4 * PAGE], True, b"\0x"))


@case("kernel_copies")
def vmsplice_then_change(c: Context):
    """A pipe that holds pages of the mapping, while the file is cut and unlinked: it keeps its bytes."""
    name = c.file(_pages(8))
    reader, writer = os.pipe()
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, 8 * PAGE)
        page.store(b"given", 0)
        sent = page.to_pipe(writer, 8 * PAGE)
        os.ftruncate(fd, 0)
        os.unlink(name)
    others = [c.file(b"o" * 8 * PAGE) for _ in range(8)]
    data = b""
    while len(data) < sent:
        data += os.read(reader, sent - len(data))
    good = all(c.data(other) == b"o" * 8 * PAGE for other in others)
    return same((sent, data[:5], data[PAGE::PAGE], good), (8 * PAGE, b"given", b"BCDEFGH", True))


@case("kernel_copies")
def process_vm(c: Context):
    """Another process's mapping read and written by process_vm_readv and writev; behind the end EFAULT."""
    import signal
    name = c.file(_pages(4))
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, 6 * PAGE)
        pid = os.fork()
        if pid == 0:
            signal.pause()
        try:
            got = [page.read_by(pid, 2, PAGE), page.write_by(pid, b"poked", 2 * PAGE),
                   page.load(2 * PAGE, 5), c.errno_of(page.read_by, pid, 10, 5 * PAGE)]
            os.ftruncate(fd, PAGE)
            got += [c.errno_of(page.read_by, pid, 10, 2 * PAGE),
                    c.errno_of(page.write_by, pid, b"x", 2 * PAGE)]
            os.ftruncate(fd, 4 * PAGE)
            got += [page.read_by(pid, 5, 2 * PAGE), page.write_by(pid, b"new", 2 * PAGE),
                    os.pread(fd, 3, 2 * PAGE)]
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return got
