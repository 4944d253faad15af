# SPDX-License-Identifier: MIT
"""Cases of direct mappings: what a program does with one: fork, mremap, mprotect, madvise, mlock, msync."""

import mmap
import os
import select
import shutil
import signal
import subprocess
import threading

from . import memory as m
from .context import Context, same
from .memory import HUGE, PAGE, PRIVATE, SHARED, Map
from .table import case

KINDS = {"shared": SHARED, "private": PRIVATE}


def _pages(count: int) -> bytes:
    """So many pages, each full of its own letter."""
    return b"".join(bytes([65 + number % 26]) * PAGE for number in range(count))


@case("fork", KINDS)
def cow_over_fork(c: Context, kind: int):
    """Parent and child store after fork; who sees what, in memory and in the file."""
    name = c.file(_pages(4))
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, 4 * PAGE, kind)
        page.store(b"before", 0)

        def child():
            page.store(b"child", PAGE)
            return page.load(0, 6)

        seen = c.in_child(child)
        page.store(b"parent", 2 * PAGE)
        got = [page.load(number * PAGE, 6) for number in range(4)]
    return seen, got, c.data(name)[::PAGE], c.data(name)[PAGE : PAGE + 5]


@case("fork")
def private_over_2_mib(c: Context):
    """One byte of a large private mapping is copied; the rest stays the file's."""
    name = c.file(bytes(2 * HUGE))
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, 2 * HUGE, PRIVATE)
        page.store(b"mine", HUGE)
        os.pwrite(fd, b"theirs", HUGE)
        os.pwrite(fd, b"theirs", HUGE + PAGE)
        return same((page.load(HUGE, 6), page.load(HUGE + PAGE, 6)), (b"mine\0\0", b"theirs"))


@case("fork", {"DONTFORK": "DONTFORK", "WIPEONFORK": "WIPEONFORK"})
def advice_for_fork(c: Context, advice: str):
    with c.open(c.file(b"x" * PAGE), os.O_RDWR) as fd:
        page = Map(fd, PAGE)
        error = c.errno_of(page.advise, advice)
        return error, c.in_child(page.load), page.load()


@case("mremap")
def grow_in_place_and_moved(c: Context):
    """A mapping that grows, by moving where it must, shows the file's further pages."""
    with c.open(c.file(_pages(64)), os.O_RDWR) as fd:
        blocker = Map(-1, 5 * PAGE, PRIVATE | m.ANONYMOUS)
        page = Map(fd, 4 * PAGE, SHARED | m.FIXED, base=blocker.base)
        page.store(b"!")
        stuck = c.errno_of(page.remap, 64 * PAGE, 0)
        page.remap(64 * PAGE)
        page.store(b"?", 63 * PAGE)
        got = stuck, page.load(), page.load(10 * PAGE), os.pread(fd, 1, 63 * PAGE), blocker.load(4 * PAGE)
    return same(got, ("ENOMEM", b"!", b"K", b"?", b"\0"))


@case("mremap")
def grow_past_the_end_of_file(c: Context):
    """Behind the end SIGBUS, until the file has grown.

    Looked at in other 2 MiB than the end: a huge page of tmpfs may be mapped as a whole.
    """
    with c.open(c.file(_pages(1)), os.O_RDWR) as fd:
        page = Map(fd, PAGE)
        page.remap(3 * HUGE)
        before = c.in_child(lambda: page.load(2 * HUGE)), c.in_child(lambda: page.store(b"x", HUGE))
        os.ftruncate(fd, HUGE + PAGE)
        return same((before, page.load(HUGE), c.in_child(lambda: page.load(2 * HUGE))),
                    (("SIGBUS", "SIGBUS"), b"\0", "SIGBUS"))


@case("mremap")
def shrink_unmaps(c: Context):
    with c.open(c.file(_pages(4)), os.O_RDWR) as fd:
        page = Map(fd, 4 * PAGE)
        page.remap(PAGE)
        return same((page.load(), c.in_child(lambda: page.load(PAGE)), c.data(f"/proc/self/fd/{fd}")[::PAGE]),
                    (b"A", "SIGSEGV", b"ABCD"))


@case("mremap")
def doubled_by_old_size_zero(c: Context):
    """mremap with an old size of 0 makes a second mapping of the same pages."""
    with c.open(c.file(_pages(2)), os.O_RDWR) as fd:
        first, second = Map(fd, 2 * PAGE), Map(fd, 2 * PAGE)
        base = first.base
        second.base, second.size = base, 2 * PAGE
        second.remap(2 * PAGE, m.MAYMOVE, 0, 0)
        second.store(b"both")
        return same((second.base != base, first.load(0, 4)), (True, b"both"))


@case("mremap", {"move": m.MAYMOVE | m.REMAP_FIXED, "keep": m.MAYMOVE | m.REMAP_FIXED | m.DONTUNMAP})
def moved_to_a_place(c: Context, flags: int):
    with c.open(c.file(_pages(3)), os.O_RDWR) as fd:
        page = Map(fd, 3 * PAGE)
        page.store(b"moves", PAGE)
        old, target = Map(fd, PAGE, base=0), m.hole(8 * PAGE)
        old.base = page.base
        error = c.errno_of(page.remap, 3 * PAGE, flags, target)
        return error, page.load(PAGE, 5), c.in_child(old.load), page.base == target


@case("mprotect")
def protections_by_open(c: Context):
    """What mprotect allows is what the open allowed, for shared mappings."""
    name = c.file(_pages(1))
    got = []
    for mode in (os.O_RDONLY, os.O_RDWR):
        for kind in (SHARED, PRIVATE):
            with c.open(name, mode) as fd:
                page = Map(fd, PAGE, kind, m.R)
            got.append([c.errno_of(page.protect, prot) for prot in (0, m.R, m.W, m.R | m.W, m.R | m.X, 7)])
    return got


@case("mprotect")
def a_protection_is_kept(c: Context):
    """Stores against it are SIGSEGV, in system calls EFAULT; taken back, they work."""
    name = c.file(_pages(3))
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, 3 * PAGE)
        page.store(b"1")
        page.protect(m.R, PAGE, PAGE)
        page.protect(m.NONE, 2 * PAGE, PAGE)
        got = [c.in_child(lambda at=at: page.store(b"s", at)) for at in (0, PAGE, 2 * PAGE)]
        got += [c.in_child(lambda: page.load(2 * PAGE)), c.errno_of(page.pread, fd, 100, 0, PAGE),
                c.errno_of(page.pwrite, fd, 100, 0, 2 * PAGE)]
        page.protect(m.R | m.W)
        page.store(b"late", 2 * PAGE)
        got.append(page.load(2 * PAGE, 5))
    return same(got, ["stored", "SIGSEGV", "SIGSEGV", "SIGSEGV", "EFAULT", "EFAULT", b"lateC"])


@case("madvise", [advice for advice in m.ADVICE if advice not in ("DONTFORK", "WIPEONFORK", "PAGEOUT")])
def advice(c: Context, name: str):
    """The errno of each advice on kinds of mappings, and that stored bytes stay but where it removes them."""
    got = []
    for kind, prot, mode in ((SHARED, m.R | m.W, os.O_RDWR), (SHARED, m.R, os.O_RDONLY),
                             (PRIVATE, m.R | m.W, os.O_RDONLY), (SHARED, m.R, os.O_RDWR)):
        file = c.file(_pages(8))
        with c.open(file, mode) as fd:
            page = Map(fd, 8 * PAGE, kind, prot)
            if prot & m.W:
                page.store(b"stored", PAGE)
            error = c.errno_of(page.advise, name, 0, 4 * PAGE)
            odd = c.errno_of(page.advise, name, 100, PAGE)
            got.append((error, odd, page.load(0), page.load(PAGE, 6), page.load(7 * PAGE)))
        got.append((c.data(file)[::PAGE], os.path.getsize(file)))
    return got


@case("madvise")
def remove_under_a_mapping(c: Context):
    """MADV_REMOVE gives the storage back: zeros by every way, and stores work again."""
    name = c.file(_pages(16))
    with c.open(name, os.O_RDWR) as fd:
        page, other = Map(fd, 16 * PAGE), Map(fd, 16 * PAGE, SHARED, m.R)
        other.load(0, 16 * PAGE)
        os.fsync(fd)
        before = os.fstat(fd).st_blocks
        page.advise("REMOVE", 4 * PAGE, 8 * PAGE)
        less = os.fstat(fd).st_blocks < before
        got = other.load(0, 16 * PAGE)[::PAGE], os.pread(fd, 16 * PAGE, 0)[::PAGE]
        page.store(b"new", 5 * PAGE)
        os.pwrite(fd, b"newer", 6 * PAGE)
        after = os.pread(fd, 4, 5 * PAGE), page.load(6 * PAGE, 6), other.load(5 * PAGE, 4)
    want = b"ABCD" + bytes(8) + b"MNOP"
    return same((got, after), ((want, want), (b"new\0", b"newer\0", b"new\0"))), less


@case("madvise", {"read": "POPULATE_READ", "write": "POPULATE_WRITE"})
def populate(c: Context, advice: str):
    """Populating faults the pages in: of holes, behind the end of file, and against the protection."""
    name = c.file()
    os.truncate(name, 8 * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page, readonly = Map(fd, 16 * PAGE), Map(fd, 8 * PAGE, SHARED, m.R)
        got = [c.errno_of(page.advise, advice, 0, 8 * PAGE), c.errno_of(page.advise, advice),
               c.errno_of(readonly.advise, advice), page.incore()]
        os.ftruncate(fd, 16 * PAGE)
        got += [c.errno_of(page.advise, advice), page.load(15 * PAGE)]
    return got


@case("madvise")
def dontneed_of_private_and_shared(c: Context):
    """DONTNEED drops a private copy; of a shared mapping nothing is lost."""
    with c.open(c.file(_pages(2)), os.O_RDWR) as fd:
        shared, private = Map(fd, 2 * PAGE), Map(fd, 2 * PAGE, PRIVATE)
        shared.store(b"shared")
        private.store(b"own", PAGE)
        shared.advise("DONTNEED")
        private.advise("DONTNEED")
        return same((shared.load(0, 6), private.load(0, 6), private.load(PAGE)), (b"shared", b"shared", b"B"))


@case("mlock")
def locked_pages(c: Context):
    """mlock of pages, of holes, and behind the end of file; truncation takes locked pages, too."""
    name = c.file(_pages(4))
    with c.open(name, os.O_RDWR) as fd:
        os.ftruncate(fd, 8 * PAGE)
        page = Map(fd, 12 * PAGE)
        got = [c.errno_of(page.lock, 0, 8 * PAGE), c.errno_of(page.lock, 0, 12 * PAGE), page.incore()[:8]]
        got += [c.errno_of(page.advise, "DONTNEED", 0, PAGE), c.errno_of(page.advise, "REMOVE", 0, PAGE)]
        os.ftruncate(fd, 2 * PAGE)
        got += [c.in_child(lambda: page.load(3 * PAGE)), page.load(PAGE), c.errno_of(page.unlock)]
    return got


@case("msync")
def flags_of_msync(c: Context):
    """Which flags and ranges are refused; with what is allowed the bytes are there."""
    with c.open(c.file(_pages(4)), os.O_RDWR) as fd:
        page, hole = Map(fd, 4 * PAGE), m.hole(PAGE)
        got = []
        for number, flags in enumerate((m.MS_SYNC, m.MS_ASYNC, m.MS_INVALIDATE, 6, 3, 5, 7, 0, 8)):
            page.store(bytes([number]), number)
            got.append(c.errno_of(page.msync, flags))
        got += [c.errno_of(page.msync, m.MS_SYNC, 1, PAGE), c.errno_of(page.msync, m.MS_SYNC, 0, PAGE + 1),
                c.errno_of(page.msync, m.MS_SYNC, hole - page.base, PAGE)]
        page.lock(0, PAGE)
        got.append(c.errno_of(page.msync, m.MS_SYNC | m.MS_INVALIDATE))
        got.append(os.pread(fd, 9, 0))
    return got


@case("msync")
def of_a_mapping_behind_the_end(c: Context):
    with c.open(c.file(_pages(2)), os.O_RDWR) as fd:
        page = Map(fd, 4 * PAGE)
        page.store(b"!", PAGE)
        os.ftruncate(fd, PAGE)
        got = c.errno_of(page.msync, m.MS_SYNC)
        os.ftruncate(fd, 0)
        return got, c.errno_of(page.msync, m.MS_SYNC), c.errno_of(os.fsync, fd), c.errno_of(os.fdatasync, fd)


@case("mincore")
def what_is_in_core(c: Context):
    """Pages of data and of holes, for who may write the file."""
    name = c.file(_pages(4))
    os.truncate(name, 8 * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, 8 * PAGE)
        before = page.incore()[:4]
        page.store(b"x", 6 * PAGE)
        return before, page.incore()[6]


@case("busy")
def program_mapped_and_run(c: Context):
    """A program that is open for writing, and mapped, is busy for exec.

    Once it is only mapped a tmpfs still says so. A direct mapping belongs to the range's file, whose writers
    the kernel does not look for when the file of the mount is run: there exec works.
    """
    shutil.copyfile("/bin/true", "prog")
    os.chmod("prog", 0o755)
    fd = os.open("prog", os.O_RDWR)
    page = Map(fd, PAGE)
    open_and_mapped = c.errno_of(subprocess.run, ["./prog"])
    os.close(fd)
    mapped = c.errno_of(subprocess.run, ["./prog"])
    magic = page.load(0, 4)
    same(mapped, "ETXTBSY" if c.fstype == "tmpfs" else "OK")
    page.unmap()
    free = c.errno_of(subprocess.run, ["./prog"])
    readonly = os.open("prog", os.O_RDONLY)
    Map(readonly, PAGE, PRIVATE, m.R | m.X)
    return open_and_mapped, magic, free, c.errno_of(subprocess.run, ["./prog"])


@case("busy")
def running_program_is_not_writable(c: Context):
    """ETXTBSY for every way to open it for writing and to cut it; unlink and rename are allowed."""
    shutil.copyfile("/bin/sleep", "prog")
    os.chmod("prog", 0o755)
    child = subprocess.Popen(["./prog", "30"])
    try:
        while os.readlink(f"/proc/{child.pid}/exe").rsplit("/", 1)[1] != "prog":
            pass
        got = [c.errno_of(os.open, "prog", flags) for flags in
               (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY)]
        got += [c.errno_of(os.truncate, "prog", 0), c.errno_of(os.rename, "prog", "other"),
                c.errno_of(os.open, "other", os.O_RDWR), c.errno_of(os.unlink, "other"), child.poll()]
    finally:
        child.kill()
    return got, child.wait()


@case("busy")
def library_on_the_mount(c: Context):
    """A shared library is loaded, its data segment is private, and replacing it by rename is safe."""
    import _ctypes
    source = _ctypes.__file__
    shutil.copyfile(source, "lib.so")
    before = c.data("lib.so")

    def load():
        import ctypes
        ctypes.CDLL("./lib.so")
        shutil.copyfile("lib.so", "new.so")
        os.rename("new.so", "lib.so")
        ctypes.CDLL("./lib.so")
        return "loaded"

    return same((c.in_child(load), c.data("lib.so") == before), ("loaded", True))


# coherence of mappings with read and write


@case("coherence", {"page": PAGE, "odd": 5000, "2MiB": HUGE})
def both_ways_with_threads(c: Context, step: int):
    """A thread stores and one writes to places of their own; a third reads both ways. Nothing is lost."""
    count = 12
    name = c.file(bytes(count * step))
    fd = os.open(name, os.O_RDWR)
    page = mmap.mmap(fd, count * step)
    bad, stop = [], threading.Event()

    def store():
        for number in range(0, count, 2):
            page[number * step : (number + 1) * step] = bytes([number + 1]) * step
            if os.pread(fd, step, number * step) != bytes([number + 1]) * step:
                bad.append(("read", number))

    def write():
        for number in range(1, count, 2):
            os.pwrite(fd, bytes([number + 1]) * step, number * step)
            if page[number * step : (number + 1) * step] != bytes([number + 1]) * step:
                bad.append(("load", number))

    def look():
        while not stop.is_set():
            for number in range(count):
                byte = os.pread(fd, 1, number * step)[0]
                if byte and page[number * step] != byte:
                    bad.append(("look", number))

    threads = [threading.Thread(target=target) for target in (store, write, look)]
    for thread in threads:
        thread.start()
    for thread in threads[:2]:
        thread.join()
    stop.set()
    threads[2].join()
    return same((bad, c.data(name) == b"".join(bytes([n + 1]) * step for n in range(count))), ([], True))


@case("coherence")
def file_grows_under_a_long_mapping(c: Context):
    """Appends by write are seen at once in a mapping that was made longer than the file."""
    name = c.file()
    with c.open(name, os.O_RDWR | os.O_APPEND) as fd:
        page, bad, model = Map(fd, 1 << 20), 0, b""
        for number in range(200):
            piece = bytes([number + 1]) * (37 * number % 5000 + 1)
            os.write(fd, piece)
            model += piece
            bad += page.load(0, len(model)) != model
    return same((bad, c.data(name) == model), (0, True))


@case("coherence", {"write": "write", "read": "read", "writev": "writev"})
def buffer_is_the_file_itself(c: Context, how: str):
    """write from and read into a mapping of the same file, whole, shifted and overlapping by pages."""
    name = c.file(_pages(8))
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, 8 * PAGE)
        if how == "write":
            got = [page.pwrite(fd, 2 * PAGE, 4 * PAGE, 0), page.pwrite(fd, 3 * PAGE, 8 * PAGE - 100, 0),
                   page.pwrite(fd, PAGE, PAGE, PAGE)]
        elif how == "read":
            got = [page.pread(fd, 2 * PAGE, 0, 4 * PAGE), page.pread(fd, PAGE, 100, 6 * PAGE),
                   page.pread(fd, PAGE, 3 * PAGE, 3 * PAGE)]
        else:
            view = mmap.mmap(fd, 8 * PAGE)
            parts = memoryview(view)
            got = [os.pwritev(fd, [parts[:PAGE], b"between", parts[3 * PAGE : 4 * PAGE]], 5 * PAGE)]
        data = c.data(name)
    return got, data == data, data[::512]


@case("coherence")
def fill_a_hole_from_itself(c: Context):
    """Holes as buffers: a write from a hole of the file, a read into one."""
    name = c.file()
    os.truncate(name, 64 * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, 64 * PAGE)
        os.pwrite(fd, b"data" * 1024, 0)
        got = page.pwrite(fd, 2 * PAGE, 10 * PAGE, 20 * PAGE), page.pread(fd, PAGE, 0, 30 * PAGE)
        return same((got, page.load(30 * PAGE, 8), page.load(10 * PAGE, 4), os.pread(fd, 4, 30 * PAGE)),
                    ((2 * PAGE, PAGE), b"datadata", bytes(4), b"data"))


# processes


@case("processes")
def atomics_between_processes(c: Context):
    """Four processes pass a token around by words of the mapping; nothing is torn or stale."""
    name = c.file(bytes(PAGE))
    rounds, players = 200, 4

    def player(own: int):
        with c.open(name, os.O_RDWR) as fd:
            page = Map(fd, PAGE)
        word = page.word(64)
        for number in range(rounds):
            while word.value % players != own:
                os.sched_yield()
            seen = page.load(512, 8)
            if int.from_bytes(seen, "little") != number * players + own:
                return "stale", number, seen
            page.store((number * players + own + 1).to_bytes(8, "little"), 512)
            word.value += 1
        return "done"

    joins = [c.start(lambda own=own: player(own)) for own in range(players)]
    got = [join() for join in joins]
    return same((got, int.from_bytes(c.data(name)[64:72], "little")), (["done"] * players, rounds * players))


@case("processes")
def killed_while_mapped(c: Context):
    """Children that store are killed with -9: what they stored is there, the file is usable."""
    name = c.file(bytes(8 * PAGE))
    for number in range(8):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            fd = os.open(name, os.O_RDWR)
            page = Map(fd, 8 * PAGE)
            if number % 2:
                os.close(fd)
            page.store(bytes([number + 1]) * 100, number * PAGE)
            os.write(writer, b"x")
            while True:
                page.store(bytes([number + 1]) * 100, number * PAGE)
        select.select([reader], [], [])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
    data = c.data(name)
    os.truncate(name, 0)
    return same([data[number * PAGE : number * PAGE + 101] for number in range(8)],
                [bytes([number + 1]) * 100 + b"\0" for number in range(8)])


@case("processes")
def locks_of_mapped_files(c: Context):
    """Record locks and flock work on a mapped file as on one that is not.

    So does a read lease, which a tmpfs does not give while a writable mapping is left: as with exec.
    """
    import fcntl
    name = c.file(_pages(1))
    with c.open(name, os.O_RDWR) as fd:
        page = Map(fd, PAGE)
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
        fcntl.flock(fd, fcntl.LOCK_EX)

        def other():
            with c.open(name, os.O_RDWR) as again:
                return (c.errno_of(fcntl.lockf, again, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5),
                        c.errno_of(fcntl.lockf, again, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10),
                        c.errno_of(fcntl.flock, again, fcntl.LOCK_SH | fcntl.LOCK_NB))

        got = c.in_child(other)
        page.store(b"x")
    with c.open(name, os.O_RDONLY) as fd:
        lease = c.errno_of(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    same(lease, "EAGAIN" if c.fstype == "tmpfs" else "OK")
    return same(got, ("EAGAIN", "OK", "EAGAIN"))
