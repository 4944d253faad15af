# SPDX-License-Identifier: MIT
"""The checks that cases name: `python -m guest.checks NAME [ARG...]`, on the source of kind GUEST_KIND.

Each makes its own region, unless it says otherwise, and takes it away; an AssertionError is its verdict.
"""

import errno
import fcntl
import inspect
import json
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import mapping_table
import mounts
import uffd
from mapped_program import Program

from daxfs.fuse import control
from tests.posix.table import all_cases

from . import nvdimm
from .cases import CUT_KINDS
from .vmas import mappings, scan, stored

MIB = 1 << 20
KIND, BOOT = os.environ["GUEST_KIND"], os.environ["GUEST_BOOT"]
SIZE = 96 * MIB  # of regions that are files
FILES = 12
DATA = 48 * MIB  # of a file that fills half of that
TRACING = Path("/sys/kernel/tracing")
# Names and attributes do not depend on the source, and all 1,400 cases take longer than 15 minutes here.
POSIX_AREAS = ("append", "copy", "fallocate", "fsync", "holes", "io", "mmap", "seek", "tmpfile", "truncate")


class Region(mounts.MountedRegion):
    def stat(self) -> dict:
        """What `daxfs stat --json` says; that takes seconds to start here."""
        return control.ask_path(self.path, {"get": "stat"})


class Found(Region):
    """A region that is there already."""

    def mkfs(self, *_args, **_kwargs) -> None:
        pass


def source_of(kind: str, part: str = "") -> Path:
    """A device, or where the file or pool directory of *kind* is, was, or will be; several with *part*."""
    if kind in ("devdax", "block"):
        return Path(nvdimm.devices()[kind])
    fs, what = kind.split("-")
    return nvdimm.MOUNTS / fs / (what + part)


def open_region(kind: str, transport="dev", options: str = "", found: bool = False, part: str = ""):
    """A region of *kind*, not mounted yet; made anew, or the one that is there."""
    source = source_of(kind, part)
    if kind.endswith("-file") and not found:
        source.touch()
        os.truncate(source, SIZE)
    return (Found if found else Region)(
        SIZE, kind="pool" if kind.endswith("-pool") else "path", source=source, options=options,
        transport=transport)  # fmt: skip


@contextmanager
def region(transport: str = "dev", options: str = "", part: str = ""):
    """A mounted region of GUEST_KIND. Then fsck.daxfs is content, the log without errors, files gone."""
    with open_region(KIND, transport, options, part=part) as one:
        yield one.mount()
        one.umount()
        done = one.fsck("-n")
        assert done.returncode == 0, done
    assert mounts.take_complaints() == []
    _remove(part)


def _remove(part: str = "") -> None:
    """The next region finds room in one piece, and so pages of 2 MiB."""
    source = source_of(KIND, part)
    if KIND.endswith("-pool"):
        shutil.rmtree(source)
    elif KIND.endswith("-file"):
        source.unlink()


def expected() -> tuple[str, str, str]:
    """(granularity, medium, instruction) of GUEST_KIND in GUEST_BOOT."""
    if KIND == "block":
        return "page", "pmem block", "msync"
    medium = "devdax" if KIND == "devdax" else "fsdax"
    return ("byte", medium, "none") if BOOT == "bytes" else ("cache_line", medium, "clwb")


def doctor() -> None:
    """daxfs doctor names the mounts and devices that are there."""
    done = mounts.run([mounts.command("daxfs"), "doctor", "--json"], check=False)
    print(done.stdout, done.stderr)
    rows = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    dax = rows["fsdax mounts"]
    assert dax["ok"] and "/pmem/ext4" in dax["value"] and "/pmem/xfs" in dax["value"], dax
    found = rows["pmem, devdax"]
    assert found["ok"] and all(device in found["value"] for device in nvdimm.devices().values()), found
    assert rows["CPU"]["ok"] and "clwb" in rows["CPU"]["value"], rows["CPU"]


def source() -> None:
    """What the source is, how it is mapped, what fsync does on it; in one mount, which takes long here."""
    with region(options="write=cached") as one:
        _granularity(one)
        _fsync(one)
        _mapping(one)


def _granularity(one) -> None:
    """Detected as it is, by daxfs info and on a mount; nothing is called emulated."""
    stat = mounts.MountedRegion.stat(one)  # by the command
    info = json.loads(mounts.run([mounts.command("daxfs"), "info", "--json", one.source]).stdout)
    print(json.dumps(stat["region"]), json.dumps(info), sep="\n")
    for facts in (info, stat["region"]):
        (found,) = facts["sources"]
        assert (found["granularity"], found["medium"]) == expected()[:2], found
        assert not found["emulated"] and not facts["emulated"]
        assert facts["granularity"] == expected()[0]
    assert stat["flush"]["kind"] == expected()[2], stat["flush"]


def content(n: int) -> bytes:
    """What file number *n* holds: of another length and with other bytes than each other one."""
    return (b"%09d " % n) * (1 + n * 977 % 4000)


def files(transport: str) -> None:
    """Files and names survive fsync and kill -9, then umount; fsck.daxfs is content each time."""
    with region(transport) as one:
        folder = one.path / "folder"
        folder.mkdir()
        for n in range(FILES):
            (folder / str(n)).write_bytes(content(n))
        with open(folder / "0", "r+b") as file:
            file.write(b"other")
            os.fsync(file.fileno())
        (folder / "1").rename(one.path / "moved")
        os.truncate(folder / "2", 10)
        for kill in (True, False):
            one.kill() if kill else one.umount()
            done = one.fsck("-n")
            # To look at a journal's records is to replay them into a private mapping.
            refused = kill and KIND == "devdax"
            assert done.returncode == (16 if refused else 0), done
            assert not refused or "records to replay" in done.stderr
            one.mount()
            assert (folder / "0").read_bytes() == b"other" + content(0)[5:]
            assert (one.path / "moved").read_bytes() == content(1)
            assert (folder / "2").read_bytes() == content(2)[:10]
            assert all((folder / str(n)).read_bytes() == content(n) for n in range(3, FILES))


def _cached() -> int:
    """Bytes in this system's page cache, of files and of block devices."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in ("Cached", "Buffers")) * 1024


def _on_the_media(one, pattern: bytes) -> bool:
    """Whether *pattern* can be read from the source past the daemon and past the page cache."""
    path = one.source / "region" if KIND.endswith("-pool") else one.source
    if KIND == "devdax":
        size = next(s["bytes"] for s in one.stat()["region"]["sources"])
        with open(path, "rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as memory:
            return memory.find(pattern) >= 0
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer, at = mmap.mmap(-1, 4 * MIB), 0
        while got := os.preadv(fd, [buffer], at):
            if buffer.find(pattern, 0, got) >= 0:
                return True
            at += got
        return False
    finally:
        os.close(fd)


def _fsync(one) -> None:
    """fsync writes back the lines that were stored, straight to the media; no page is cached on the way."""
    data, cached = os.urandom(MIB), _cached()
    one.path.joinpath("file").write_bytes(bytes(DATA))
    with open(one.path / "file", "r+b", buffering=0) as file:
        for at in range(0, DATA, MIB):
            assert os.pwrite(file.fileno(), data, at) == MIB
        before = one.stat()["flush"]
        os.fsync(file.fileno())
        after = one.stat()["flush"]
    grown, lines = _cached() - cached, after["flush_lines"] - before["flush_lines"]
    print(f"page cache grown by {grown}, {lines} lines written back, {after}")
    if expected()[2] == "clwb":
        assert lines >= DATA // 64
    if expected()[2] == "msync":
        assert grown > DATA // 2  # it would be seen
    else:
        assert after["drain"] > before["drain"] and grown < DATA // 8
    assert _on_the_media(one, data[:256])


def _mapping(one) -> None:
    """The daemon's mapping of the region: MAP_SYNC where it has to be, and of 2 MiB pages."""
    target = one.source / "region" if KIND.endswith("-pool") else one.source
    found = [area for area in mappings(one.pid) if area.path == str(target)]
    for area in found:
        print(f"{area.start:x}-{area.end:x} {area.flags} huge {area.huge} present {area.present}")
    assert found and sum(area.present for area in found) >= DATA
    assert all(("sf" in area.flags) == KIND.startswith(("ext4", "xfs")) for area in found)
    huge, present = (sum(getattr(area, name) for area in found) for name in ("huge", "present"))
    if KIND == "block":
        assert huge == 0
    else:
        assert huge >= 0.9 * present, f"{huge} of {present} bytes in 2 MiB pages"


@contextmanager
def _traced(name: str, fields: str):
    """A list that gets, at the end, what *fields* matches, as numbers, in the fs_dax events *name*."""
    done = []
    # Else the kernel patches its scheduler each time, to note the names of programs, which software
    # emulation does not always bear (a panic in __schedule).
    (TRACING / "options/record-cmd").write_text("0")
    event = TRACING / f"events/fs_dax/{name}/enable"
    (TRACING / "trace").write_text("")
    event.write_text("1")
    try:
        yield done
    finally:
        event.write_text("0")
        for found in re.finditer(fields, (TRACING / "trace").read_text()):
            done.append(tuple(int(number, 16) for number in found.groups()))


def dax_writebacks():
    """A list that gets, at the end, (inode,) of each file whose dirty DAX entries the kernel wrote back."""
    return _traced("dax_writeback_range_done", "ino (0x[0-9a-f]+)")


@contextmanager
def dax_pages(inode: int):
    """A list that gets, at the end, (first page, pages) of each DAX entry of *inode* that is written back."""
    number = "(0x[0-9a-f]+)"
    with _traced("dax_writeback_one", f"ino {number} pgoff {number} pglen {number}") as done:
        found = []
        yield found
    found += [(first, pages) for ino, first, pages in done if ino == inode]


def direct() -> None:
    """A file with the DAX flag is mapped directly: programs' own pages are those of its range, of 2 MiB where
    the file system has them, and fsync has the kernel write back what was stored there.
    """
    with region() as one:
        mounts.set_dax(one.path)
        with open(one.path / "file", "w+b", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, DATA)
            (name,) = os.listdir(one.source / "ranges")
            behind = one.source / "ranges" / name
            with mmap.mmap(file.fileno(), DATA) as memory:
                for at in range(0, DATA, 4096):
                    memory[at] = 1
                (area,) = [area for area in mappings(os.getpid()) if area.path == str(one.path / "file")]
                print(f"{area.flags} huge {area.huge} present {area.present}", one.stat()["direct"])
                assert area.present == DATA and area.huge >= 0.9 * DATA
                with dax_writebacks() as nothing:
                    pass
                with dax_writebacks() as written:
                    os.fsync(file.fileno())
                print(f"written back: {written}; range {behind.stat().st_ino}")
                assert (behind.stat().st_ino,) in written and not nothing
                memory[5 * MIB : 5 * MIB + 5] = b"store"
                assert os.pread(file.fileno(), 5, 5 * MIB) == b"store"
                assert os.pwrite(file.fileno(), b"write", 9 * MIB) == 5
                assert memory[9 * MIB : 9 * MIB + 5] == b"write"
                os.truncate(one.path / "file", DATA // 2)
                assert behind.stat().st_size == DATA // 2
                os.fsync(file.fileno())
        one.kill()
        one.mount()
        with open(one.path / "file", "rb") as file:
            assert file.seek(0, os.SEEK_END) == DATA // 2
            assert os.pread(file.fileno(), 5, 5 * MIB) == b"store"
            assert os.pread(file.fileno(), 5, 9 * MIB) == b"write"
        (one.path / "file").unlink()
        # The kernel tells of the last close, and that it has forgotten the inode, when it likes.
        until = time.monotonic() + 20
        while os.listdir(one.source / "ranges"):
            assert time.monotonic() < until, "the range outlives its file"
            time.sleep(0.1)


def range_of(one, path: Path) -> Path:
    """The file that holds the range of *path*."""
    ino = path.stat().st_ino
    (name,) = (name for name in os.listdir(one.source / "ranges") if int(name.split("-")[0], 16) == ino)
    return one.source / "ranges" / name


@contextmanager
def _written_back(one, path: Path):
    """A list that is not empty at the end if the kernel has written the range of *path* back."""
    wanted, done = range_of(one, path).stat().st_ino if KIND.endswith("-pool") else None, []
    with dax_writebacks() as inodes:
        yield done
    done += [ino for (ino,) in inodes if ino == wanted]


def _refused(call) -> None:
    try:
        call()
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP, error
    else:
        raise AssertionError("not refused")


def tracked() -> None:
    """fsdax knows by itself what was stored. So mappings are not observed, which is said, with both kinds of
    faults; msync(2) of a part, persist, and fsync(2) by another process write back what was stored there and
    nothing else, also of a program that was killed; programs under `daxfs run` go on as without it.
    """
    with region() as one:
        mounts.set_dax(one.path)
        path = one.path / "file"
        with open(path, "xb") as file:
            os.posix_fallocate(file.fileno(), 0, 8 * MIB)
        _exact(path, range_of(one, path).stat().st_ino)
        _under_daxfs_run(one, path)
        found = one.stat()["dax"]
        print(found)
        assert found["coarse_fsyncs"] == found["observed"]["mappings"] == found["observed"]["looks"] == 0


def _exact(path: Path, behind: int) -> None:
    """Stores through a mapping that is refused to be observed, and what is written back of them."""
    from daxfs.client import map_file  # numpy, which takes seconds to load here

    array, huge = map_file(path), 2 * MIB // 4096
    assert not array.observed and "tracks stores by itself" in array.why_not, array.why_not
    assert array.flush_kind == "msync"
    _refused(array.dirty)
    for fault in ("kernel", "user"):
        assert map_file(path, fault=fault).why_not == array.why_not
        _refused(lambda fault=fault: map_file(path, require=True, fault=fault))

    def writes_back(call, *stores: int) -> None:
        with dax_pages(behind) as entries:
            call()
        print(entries, "for pages", stores)
        for page, (first, count) in zip(stores, sorted(entries), strict=True):
            assert first <= page < first + count, entries

    array[::4096] = 1
    fsync = ["sync", path]
    mounts.run(fsync)
    array[2 * MIB + 5], array[6 * MIB] = 2, 3
    writes_back(lambda: array.msync(slice(2 * MIB, 2 * MIB + 8192)), huge)
    writes_back(lambda: mounts.run(fsync), 3 * huge)
    writes_back(lambda: mounts.run(fsync))
    array[4 * MIB + 4096], array[6 * MIB] = 4, 5
    writes_back(lambda: array.persist(slice(4 * MIB + 4096, 4 * MIB + 4100)), 2 * huge + 1)
    array.msync()
    program = Program(path)
    program.say("store last")
    program.end()
    writes_back(lambda: mounts.run(fsync), 0)
    assert bytes(array[:4]) == b"last"


def _under_daxfs_run(one, path: Path) -> None:
    """Programs that map are not disturbed, with both kinds of faults, and msync is the file system's own."""
    words = [mounts.command("daxfs"), "run", "--fault"]
    program = ("import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0);"
               "m[8192:8196] = b'user'; m.flush(8192, 4096)")
    with dax_pages(range_of(one, path).stat().st_ino) as entries:
        mounts.run([*words, "user", "--", sys.executable, "-c", program, path])
    assert len(entries) == 1 and path.read_bytes()[8192:8196] == b"user", entries
    fio = ["fio", "--name=x", f"--filename={path}", "--ioengine=mmap", "--size=2m", "--bs=4k", "--fsync=64",
           "--rw=randwrite", "--verify=crc32c", "--verify_state_save=0", "--do_verify=1", "--verify_fatal=1",
           "--output-format=terse"]
    print(mounts.run([*words, "kernel", "--", *fio], timeout=100).stdout)


def marks() -> None:
    """Why they are not observed: userfaultfd takes a mapping of fsdax (asynchronous protection alone), but of
    a page of 2 MiB that was protected the kernel never says again that it was stored to.
    """
    with region() as one:
        mounts.set_dax(one.path)
        with open(one.path / "file", "w+b", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, 4 * MIB)
            for advice, wanted in ((mmap.MADV_HUGEPAGE, 0), (mmap.MADV_NOHUGEPAGE, 4096)):
                _marks(file.fileno(), advice, wanted)


def _marks(file: int, advice: int, wanted: int) -> None:
    mapping, fd = uffd.Mapping(file, 4 * MIB), uffd.create("wp_unpopulated", "wp_async")
    start, end = mapping.address, mapping.address + mapping.length
    try:
        mapping.advise(advice)
        uffd.register(fd, start, mapping.length, uffd.WP)
        for at in range(0, mapping.length, 4096):
            mapping.view[at] = 1
        first, huge = stored(start, end, True), scan(os.getpid(), start, end)[1]
        between = stored(start, end, False)
        mapping.view[2 * MIB + 5] = 2
        found = stored(start, end, False)
        print(f"{huge} bytes in 2 MiB pages; stored to {first}, protected {between}, after a store {found}")
        assert first == mapping.length and between == 0
        assert huge == (0 if wanted else mapping.length) and found == wanted, (huge, found)
    finally:
        mapping.close()
        os.close(fd)


def table(transport: str, row: str) -> None:
    """Accesses reach what docs/mappings.md says in *row*, with the DAX flag and without."""
    with region() as one:
        if transport == "pyfuse3":  # which has no ioctl for the flag
            mounts.set_dax(one.path)
            one.transport = transport
            one.remount()
        found = mapping_table.look(one, _written_back)
        print(found)
        assert found == mapping_table.documented()[row]


def huge_mapping(path: Path, size: int) -> tuple[bytes, int]:
    """What a new mapping of *path* shows, and how many bytes of it are in pages of 2 MiB."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), size) as memory:
        data = memory[:]
        (area,) = [area for area in mappings(os.getpid()) if area.path == str(path)]
        return data, area.huge


def fit_for_huge(path: Path) -> int:
    """Bytes of a file in aligned pieces of 2 MiB that are whole and aligned on the device, too (FIEMAP)."""
    head, extent = struct.Struct("=QQIIII"), struct.Struct("=QQQ32x")
    request = bytearray(head.pack(0, 1 << 60, 1, 0, 256, 0) + bytes(256 * extent.size))
    with open(path, "rb") as file:
        fcntl.ioctl(file, 0xC020660B, request)
    huge = 0
    for n in range(head.unpack_from(request)[3]):
        logical, physical, length = extent.unpack_from(request, head.size + n * extent.size)
        first = -logical % (2 * MIB)
        if length >= first + 2 * MIB and (physical + first) % (2 * MIB) == 0:
            huge += (length - first) // (2 * MIB) * 2 * MIB
    return huge


def revoke() -> None:
    """`daxfs revoke` takes mappings away: SIGBUS for who sleeps, who has the file open and who stores; the
    data stay, over kill -9 too, and after --undo the copy is mapped in pages of 2 MiB, where it stands so.
    """
    size = 6 * MIB + 12288
    with region() as one, ExitStack() as programs:
        mounts.set_dax(one.path)
        path, stored = one.path / "file", one.path / "stored"
        data = os.urandom(size)
        path.write_bytes(data)
        stored.write_bytes(bytes(4 * MIB))

        def start(*how) -> Program:
            program = Program(*how)
            programs.callback(program.end)
            return program

        asleep, holder, busy = start(path), start(path, "keep"), start(stored, "busy", "keep")
        assert asleep.say("store early") == "early" == holder.say("look")
        data = b"early" + data[5:]
        before = {file: range_of(one, file).stat().st_ino for file in (path, stored)}
        done = mounts.run([mounts.command("daxfs"), "revoke", "--timeout", "0", "--json", one.path])
        report = json.loads(done.stdout)
        print(report)
        assert len(report["taken"]) == 2 and report["left"] == []
        users = {user["pid"] for taken in report["taken"] for user in taken["users"]}
        assert {asleep.pid, holder.pid} <= users
        assert asleep.dies_of_sigbus() and holder.dies_of_sigbus("store lost")
        assert busy.child.wait(60) == -signal.SIGBUS
        # File by file: ext4 gives the number of a range that is gone to the next one.
        assert all(range_of(one, file).stat().st_ino != number for file, number in before.items())
        assert path.read_bytes() == data
        # A store while a piece is copied and cut may be lost: fsdax lets nobody hold pages meanwhile.
        last = stored.read_bytes()
        one.kill()
        one.mount()
        assert path.read_bytes() == data and stored.read_bytes() == last
        assert len(last) == 4 * MIB and any(last)
        mounts.run([mounts.command("daxfs"), "revoke", "--timeout", "0", one.path])
        shown, huge = huge_mapping(path, size)
        assert shown == data and huge == 0 and one.stat()["direct"]["open"] == 0
        mounts.run([mounts.command("daxfs"), "revoke", "--undo", one.path])
        until = time.monotonic() + 20
        while one.stat()["inodes"]["open"]:
            assert time.monotonic() < until, "no end of what was closed"
            time.sleep(0.1)
        shown, huge = huge_mapping(path, size)
        able = fit_for_huge(range_of(one, path))
        assert shown == data and huge == able, (huge, able)
        # The copy's storage is taken at once: XFS makes that one extent, ext4 what it finds free.
        assert able == 6 * MIB or KIND.startswith("ext4"), able


def _halves() -> list[list[str]]:
    """POSIX_AREAS in two parts that take about as long."""
    weight = Counter()
    for case in all_cases(()):
        if case.area in POSIX_AREAS:
            weight[case.area] += 1
    halves: list[list[str]] = [[], []]
    for area, _ in weight.most_common():
        min(halves, key=lambda half: sum(weight[one] for one in half)).append(area)
    return halves


def posix(transport: str, dax: str = "") -> None:
    """Data in the POSIX table agree with tmpfs: two halves at once, each on a region of its own.

    *dax*: all files have the DAX flag.
    """
    with ExitStack() as stack:
        runs = []
        for number, areas in enumerate(_halves()):
            one = stack.enter_context(region(transport, "allow_other", f"-{number}"))
            if dax:
                mounts.set_dax(one.path)
            args = [arg for area in areas for arg in ("--only", area)]
            runs.append(subprocess.Popen([sys.executable, "-P", "-m", "tests.posix", "-v", "--timeout",
                                          "120", *args, one.path]))  # fmt: skip
        ends = [run.wait() for run in runs]
        assert ends == [0, 0], ends


def load_until_cut() -> None:
    """Files made and overwritten with fsync on several kinds at once, in pool directories also stores to the
    holes of a mapped file with msync, each told to the host when it is durable, until the host takes the
    power away."""
    port = int(os.environ["GUEST_EVENTS"])
    made = {kind: open_region(kind).mount() for kind in CUT_KINDS}
    arrays = {kind: _sparse(one.path / "mapped") for kind, one in made.items() if kind.endswith("-pool")}
    until, n = time.monotonic() + 100, 0
    while time.monotonic() < until:
        for kind, one in made.items():
            with open(one.path / str(n), "xb") as file:
                file.write(content(n))
                file.flush()
                os.fsync(file.fileno())
            with open(one.path / "counter", "r+b" if n else "xb") as file:
                file.write(counter(n))
                file.flush()
                os.fsync(file.fileno())
            if kind in arrays:
                at = _place(n)
                arrays[kind][at : at + 10] = list(content(n)[:10])
                arrays[kind].msync(slice(at, at + 10))
            event = {"event": "note", "load": True, "key": kind, "value": n}
            os.write(port, (json.dumps(event) + "\n").encode())
        n += 1
    raise AssertionError(f"nobody cut the power; {n} files")


def _sparse(path: Path):
    """A mapping of a new DAX file, all of it a hole, that is durable."""
    path.touch()
    mounts.set_dax(path)
    os.truncate(path, 64 * MIB)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    from daxfs.client import map_file  # numpy, which takes seconds to load here

    return map_file(path)


def _place(n: int) -> int:
    """Where store number *n* goes: into pages of 2 MiB that have none yet, for as long as there are such."""
    return n % 32 * 2 * MIB + n // 32 * 4096


def counter(n: int) -> bytes:
    return b"%09d\n" % n * 1500


def after_cut() -> None:
    """What was durable before the power cut is there; fsck.daxfs is content before and after the mount."""
    noted = json.loads(os.environ["GUEST_NOTES"]).get(KIND)
    assert noted is not None, "no power was cut before"
    with open_region(KIND, found=True) as one:
        print(one.fsck("-n"))
        one.mount()
        print(f"{noted + 1} files were durable; replayed: {one.stat()['replayed']}")
        for n in range(noted + 1):
            assert (one.path / str(n)).read_bytes() == content(n), n
        if KIND.endswith("-pool"):
            mapped = (one.path / "mapped").read_bytes()
            assert len(mapped) == 64 * MIB
            for n in range(noted + 1):
                assert mapped[_place(n) : _place(n) + 10] == content(n)[:10], n
        # The next number may have overwritten it in part.
        allowed = zip(counter(noted), counter(noted + 1), strict=True)
        number = (one.path / "counter").read_bytes()
        assert all(byte in two for byte, two in zip(number, allowed, strict=True)), number[:40]
        (one.path / "new").write_bytes(content(1))
        one.umount()
        done = one.fsck("-n")
        assert done.returncode == 0, done
    assert mounts.take_complaints() == []
    _remove()


CHECKS = (doctor, source, files, direct, tracked, marks, table, revoke, posix, load_until_cut,
          after_cut)


def main() -> None:
    named = {check.__name__: check for check in CHECKS}
    check = named[sys.argv[1]]
    print(inspect.getdoc(check), flush=True)
    check(*sys.argv[2:])


if __name__ == "__main__":
    main()
