# SPDX-License-Identifier: MIT
"""Cases: mappings, and programs run from the mount."""

import mmap
import os
import random
import shutil
import subprocess

from .context import Context, among, same
from .table import case

PAGE = 4096
SHARED, PRIVATE = mmap.MAP_SHARED, mmap.MAP_PRIVATE
R, RW = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
SIZES = {"page": PAGE, "odd": 3 * PAGE + 17, "2MiB": 2 << 20, "5MiB": (5 << 20) + 1}


@case("mmap", SIZES)
def store_is_read(c: Context, size: int):
    """Stores through a shared mapping are seen by read at once, from another descriptor too."""
    name = c.file(bytes(size))
    data = random.Random(size).randbytes(size)
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, size, SHARED, RW)
        page[:] = data
        first = os.pread(fd, size, 0) == data
        page.close()
    return same((first, c.data(name) == data), (True, True))


@case("mmap", SIZES)
def write_is_loaded(c: Context, size: int):
    """pwrite is seen in a mapping that has touched the page before."""
    name = c.file(bytes(size))
    data = random.Random(size).randbytes(size)
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, size, SHARED, R)
        touched = sum(page[i] for i in range(0, size, PAGE))
        os.pwrite(fd, data, 0)
        seen = page[:] == data
        page.close()
    return same((touched, seen), (0, True))


@case("mmap", SIZES)
def private_is_not_written_back(c: Context, size: int):
    name = c.file(b"a" * size)
    with c.open(name, os.O_RDONLY) as fd:
        page = mmap.mmap(fd, size, PRIVATE, RW)
        page[0] = page[size - 1] = 0x62
        seen = page[0], page[size - 1]
        page.close()
    return same((seen, c.data(name) == b"a" * size), ((0x62, 0x62), True))


@case("mmap")
def private_sees_later_writes_until_copied(c: Context):
    """A private page that was not stored to may show later writes; one that was stored to keeps its copy."""
    name = c.file(b"a" * 2 * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, 2 * PAGE, PRIVATE, RW)
        page[0] = 0x62
        os.pwrite(fd, b"c" * 2 * PAGE, 0)
        got = page[0], page[1], page[PAGE]
        page.close()
    return same(got, (0x62, 0x61, 0x63))


@case("mmap")
def alternating_with_write(c: Context):
    """Random stores, writes and both kinds of reading agree with a bytearray."""
    size, rng = 64 * PAGE, random.Random(7)
    name, model = c.file(bytes(size)), bytearray(size)
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, size, SHARED, RW)
        bad = 0
        for _ in range(400):
            at, n = rng.randrange(size - 9000), rng.choice((1, 64, 4096, 9000))
            data = rng.randbytes(n)
            if rng.random() < 0.5:
                page[at : at + n] = data
            else:
                os.pwrite(fd, data, at)
            model[at : at + n] = data
            at = rng.randrange(size - 100)
            bad += (
                page[at : at + 100] != model[at : at + 100] or os.pread(fd, 100, at) != model[at : at + 100]
            )
        page.flush()
        page.close()
    return same((bad, c.data(name) == bytes(model)), (0, True))


@case("mmap")
def hole_is_filled_by_store(c: Context):
    name = c.file()
    os.truncate(name, 16 * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, 16 * PAGE)
        zeros = page[5 * PAGE : 6 * PAGE] == bytes(PAGE)
        page[5 * PAGE + 7] = 99
        page.flush()
        os.fsync(fd)
        page.close()
        blocks = os.fstat(fd).st_blocks
    data = c.data(name)
    return same(
        (zeros, data.count(0) == 16 * PAGE - 1, data[5 * PAGE + 7], 8 <= blocks < 128), (True, True, 99, True)
    )


@case("mmap")
def sparse_far_out(c: Context):
    """A page at 1 TiB, mapped and stored to."""
    name, at = c.file(), 1 << 40
    os.truncate(name, at + PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, PAGE, SHARED, RW, offset=at)
        page[:5] = b"far!!"
        page.close()
        return same(os.pread(fd, 5, at), b"far!!")


@case("mmap", {"load": "load", "store": "store"})
def beyond_eof_is_sigbus(c: Context, how: str):
    """Touching a page behind the end of file."""
    name = c.file(b"x" * 2 * PAGE)

    def touch():
        with c.open(name, os.O_RDWR) as fd:
            page = mmap.mmap(fd, 2 * PAGE)
            os.ftruncate(fd, 100)
            if how == "load":
                return page[PAGE]
            page[PAGE] = 1
            return "stored"

    return same((c.in_child(touch), os.path.getsize(name)), ("SIGBUS", 100))


@case("mmap")
def truncate_by_other_process_is_sigbus(c: Context):
    """A page that was already mapped goes away when another process truncates the file."""
    name = c.file(b"x" * 2 * PAGE)
    ready, gone = os.pipe(), os.pipe()

    def reader():
        with c.open(name, os.O_RDONLY) as fd:
            page = mmap.mmap(fd, 2 * PAGE, SHARED, R)
            os.write(ready[1], bytes([page[PAGE]]))
            os.read(gone[0], 1)
            return page[PAGE]

    join = c.start(reader)
    first = os.read(ready[0], 1)
    os.truncate(name, PAGE)
    os.write(gone[1], b"x")
    return same((first, join()), (b"x", "SIGBUS"))


@case("mmap")
def rest_of_last_page_is_zero(c: Context):
    name = c.file(b"x" * 2 * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, 2 * PAGE)
        os.ftruncate(fd, 100)
        got = page[98:102], page[100:PAGE] == bytes(PAGE - 100)
        page.close()
    return same(got, (b"xx\0\0", True))


@case("mmap")
def growing_makes_pages_reachable(c: Context):
    """A mapping that was longer than the file reaches what is added later."""
    name = c.file(b"x" * 2 * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, 2 * PAGE)
        os.ftruncate(fd, 10)
        os.pwrite(fd, b"again", PAGE + 5)
        got = page[PAGE : PAGE + 11]
        page.close()
    return same(got, b"\0" * 5 + b"again" + b"\0")


@case("mmap")
def rights(c: Context):
    """A shared writable mapping needs O_RDWR; any mapping needs reading; private is content with O_RDONLY."""
    name = c.file(b"x" * PAGE)
    with c.open(name, os.O_RDONLY) as r, c.open(name, os.O_WRONLY) as w, c.open(name, os.O_RDWR) as rw:
        tries = (
            (r, SHARED, RW),
            (r, SHARED, R),
            (r, PRIVATE, RW),
            (w, SHARED, R),
            (w, SHARED, RW),
            (w, PRIVATE, R),
            (rw, SHARED, RW),
        )
        got = [c.errno_of(mmap.mmap, fd, PAGE, kind, prot) for fd, kind, prot in tries]
    return same(got, ["EACCES", "OK", "OK", "EACCES", "EACCES", "EACCES", "OK"])


@case("mmap")
def outlives_the_descriptor(c: Context):
    name = c.file(b"x" * PAGE)
    fd = os.open(name, os.O_RDWR)
    page = mmap.mmap(fd, PAGE)
    os.close(fd)
    page[0] = 0x79
    page.flush()
    return same(c.data(name)[:2], b"yx")


@case("mmap")
def outlives_the_name(c: Context):
    """A mapped file without name and descriptor is still there, and keeps what is stored."""
    name = c.file(b"x" * (8 * PAGE))
    fd = os.open(name, os.O_RDWR)
    page = mmap.mmap(fd, 8 * PAGE)
    os.close(fd)
    os.unlink(name)
    page[7 * PAGE] = 0x79
    page.flush()
    return same((page[0], page[7 * PAGE], page[7 * PAGE + 1]), (0x78, 0x79, 0x78))


@case("mmap")
def shared_between_processes(c: Context):
    """Two mappings of one file, in two processes, share stores."""
    name = c.file(bytes(PAGE))
    ask, answer = os.pipe(), os.pipe()

    def other():
        with c.open(name, os.O_RDWR) as fd:
            page = mmap.mmap(fd, PAGE)
            for i in range(100):
                os.read(ask[0], 1)
                page[i + 200] = page[i] ^ 0xFF
                os.write(answer[1], b"x")
        return "done"

    join, good = c.start(other), 0
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, PAGE)
        for i in range(100):
            page[i] = i
            os.write(ask[1], b"x")
            os.read(answer[0], 1)
            good += page[i + 200] == i ^ 0xFF
    return same((join(), good), ("done", 100))


@case("mmap", {"shared": (SHARED, b"child"), "private": (PRIVATE, b"start")})
def over_fork(c: Context, kind: int, want: bytes):
    """A shared mapping stays shared over fork, a private one is copied."""
    name = c.file(b"start" + bytes(PAGE))
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, PAGE, kind, RW)
        page[5] = 1
        c.in_child(lambda: page.__setitem__(slice(0, 5), b"child"))
        return same((page[:5], os.pread(fd, 5, 0)), (want, want))


@case("mmap")
def msync_and_fsync(c: Context):
    """msync of parts, fsync and fdatasync with dirty mapped pages."""
    name = c.file(bytes(8 * PAGE))
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, 8 * PAGE)
        for i in range(8):
            page[i * PAGE] = i + 1
        page.flush(2 * PAGE, PAGE)
        os.fdatasync(fd)
        page[0] = 77
        os.fsync(fd)
        page.flush()
        page.close()
    return same([c.data(name)[i * PAGE] for i in range(8)], [77, 2, 3, 4, 5, 6, 7, 8])


@case("mmap")
def offset_mappings_alias(c: Context):
    """Two mappings at different offsets show the same bytes."""
    name = c.file(bytes(16 * PAGE))
    with c.open(name, os.O_RDWR) as fd:
        low, high = mmap.mmap(fd, 16 * PAGE), mmap.mmap(fd, 4 * PAGE, offset=8 * PAGE)
        low[9 * PAGE] = 5
        high[3 * PAGE + 1] = 6
        got = high[PAGE], low[11 * PAGE + 1]
        low.close()
        high.close()
    return same(got, (5, 6))


@case("mmap")
def write_from_own_mapping(c: Context):
    """write(2) whose buffer is a mapping of the same file (a copy inside the file)."""
    name = c.file(bytes(range(256)) * 32)
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, 2 * PAGE)
        view = memoryview(page)
        wrote = os.pwrite(fd, view[:PAGE], PAGE + 100)
        view.release()
        page.close()
    data = c.data(name)
    return same(
        (wrote, len(data), data[PAGE + 100 :] == (bytes(range(256)) * 16)), (PAGE, 2 * PAGE + 100, True)
    )


@case("mmap")
def read_into_own_mapping(c: Context):
    """read(2) into a mapping of the same file."""
    name = c.file(b"A" * PAGE + b"B" * PAGE)
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, 2 * PAGE)
        view = memoryview(page)
        got = os.preadv(fd, [view[PAGE:]], 0)
        view.release()
        page.close()
    return same((got, c.data(name) == b"A" * 2 * PAGE), (PAGE, True))


@case("mmap")
def length_zero_and_bad_kinds(c: Context):
    with c.open(c.dir(), os.O_RDONLY) as fd:
        got = c.errno_of(mmap.mmap, fd, PAGE, SHARED, R)
    return same(got, "ENODEV")


@case("mmap", compare=False)
def direct_read_of_dirty_page(c: Context):
    """O_DIRECT reads what a mapping has stored, without msync."""
    name = c.file(bytes(4 * PAGE))
    with c.open(name, os.O_RDWR) as fd:
        page = mmap.mmap(fd, 4 * PAGE)
        page[PAGE : PAGE + 4] = b"dirt"
        try:
            direct = os.open(name, os.O_RDONLY | os.O_DIRECT)
        except OSError:
            return same(c.fstype, "tmpfs", "only an old tmpfs has no O_DIRECT")
        room = mmap.mmap(-1, PAGE)
        os.preadv(direct, [room], PAGE)
        page.close()
    return same(room[:4], b"dirt")


# programs


@case("exec")
def program_from_mount(c: Context):
    """A copied binary runs; without x it does not."""
    shutil.copyfile("/bin/true", "prog")
    first = c.errno_of(subprocess.run, ["./prog"])
    os.chmod("prog", 0o755)
    return same((first, subprocess.run(["./prog"], check=False).returncode), ("EACCES", 0))


@case("exec")
def script_from_mount(c: Context):
    with open("script", "w") as handle:
        handle.write("#!/bin/sh\necho $((6 * 7))\n")
    os.chmod("script", 0o755)
    return same(subprocess.run(["./script"], capture_output=True, check=True).stdout, b"42\n")


@case("exec")
def busy_text(c: Context):
    """A running program can't be opened for writing, nor the other way round (kernels differ)."""
    shutil.copyfile("/bin/sleep", "prog")
    os.chmod("prog", 0o755)
    child = subprocess.Popen(["./prog", "20"])
    got = [c.errno_of(os.open, "prog", os.O_WRONLY), c.errno_of(os.truncate, "prog", 0)]
    child.kill()
    child.wait()
    with c.open("prog", os.O_WRONLY):
        got.append(c.errno_of(subprocess.run, ["./prog", "0"]))
    return got


@case("exec")
def replaced_while_running(c: Context):
    """Renaming a new program over a running one leaves the running one alone."""
    for source, name in (("/bin/sleep", "prog"), ("/bin/true", "new")):
        shutil.copyfile(source, name)
        os.chmod(name, 0o755)
    child = subprocess.Popen(["./prog", "0.2"])
    os.rename("new", "prog")
    return same((child.wait(), subprocess.run(["./prog"], check=False).returncode), (0, 0))


@case("exec")
def empty_and_foreign_files(c: Context):
    for name, data in (("empty", b""), ("junk", b"\x7fELFnot really")):
        os.rename(c.file(data, 0o755), name)
    got = [c.errno_of(os.execv, f"./{n}", [n]) for n in ("empty", "junk")]
    among(got[0], ("ENOEXEC",))
    return got
