#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""fsync of one dirty 4 KiB block: what its caller waits, and what daxfs itself takes. Targets of issue 7.

On mounts with write=cached and transport=uring, the client (fsync.c) on one CPU, for track=pte and
track=line: files of 1 MiB to 4 GiB, without holes, of which 64 blocks spread over all of it are written; 0
to 256 MiB that are dirty in other files; 0 to 1 GiB of other files that this process has mapped, directly,
and stored to. In turns, the order turned round each time; medians of all turns. "inside" is what the
counters of `daxfs stat` say of the same fsyncs.

Then in this process, without FUSE: native service of the same fsync (its `total`) and, in turns with it, a
plain flush and drain of 4 KiB of dirty lines. Needs root, /dev/fuse, cc.
"""

import contextlib
import json
import mmap
import os
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import bench
from bench import Report

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * KIB
SIZES = {"1 MiB": MIB, "64 MiB": 64 * MIB, "1 GiB": GIB, "4 GiB": 4 * GIB}
BLOCKS = 64
DIRTY = (0, 64, 256)  # MiB in other files
MAPPED = (0, 64, 1024)  # MiB of other files
TRACKS = ("pte", "line")
CALLER, RATIO, MORE = 15, 1.2, 2  # µs; µs more than flush and drain; slowest to fastest
FREE = {"flush_line_ns": 0.0, "flush_drain_ns": 0.0, "nt_line_ns": 0.0, "nt_drain_ns": 0.0, "write_gb_s": 0.0}
_HEADER = struct.Struct("<IIQQIIIHH")  # fuse_in_header
_FSYNC, _WRITE = 20, 16


def make(path: Path, size: int) -> None:
    """A file of *size* bytes, all of them written and durable."""
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(b"\xa5" * MIB)
        os.fsync(file.fileno())


def stride(size: int) -> int:
    """Bytes from one block to the next."""
    return max((size - PAGE) // (BLOCKS - 1) // PAGE * PAGE, PAGE)


class Mounted:
    """One mount, and the client on it. *keep*: (what, value) of each turn."""

    def __init__(self, args, region, client: Path, track: str, keep):
        import mounts
        self.args, self.region, self.client, self.track, self.keep = args, region, client, track, keep
        self.cpu = min(os.sched_getaffinity(0))
        self.packed, self.own = region.path / "packed", region.path / "own"
        for folder in (self.packed, self.own):
            folder.mkdir()
            mounts.set_dax(folder, folder is self.own)
        for name, size in args.sizes.items():
            make(self.file(name), size)
        self.others = []
        for n in range(max(args.dirty) // 64):
            make(self.packed / f"other{n}", 64 * MIB)
            self.others.append(os.open(self.packed / f"other{n}", os.O_RDWR | os.O_DIRECT))
        for size in filter(None, args.mapped):
            make(self.own / f"mapped{size}", size * MIB)

    def file(self, name: str) -> Path:
        return self.packed / name.replace(" ", "")

    def turn(self, what: str, name: str, seed: int) -> None:
        """The client once."""
        before = self.region.stat()["fsync"]
        command = [self.client, self.file(name), self.args.calls, BLOCKS,
                   stride(self.args.sizes[name]), self.cpu, seed]
        done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
        after = self.region.stat()["fsync"]
        count = after["count"] - before["count"]
        phases = {key: (one["total_ns"] - before["phases"][key]["total_ns"]) / count / 1000
                  for key, one in after["phases"].items()}
        if phases["python"] or after["served"] - before["served"] != count:
            raise SystemExit(f"{what}: not all fsyncs were served natively")
        self.keep(what, "caller", json.loads(done.stdout)["median"] / 1000)
        self.keep(what, "inside", sum(phases.values()))
        self.keep(what, "flush + drain", phases["flush"] + phases["drain"])

    def dirty(self, size: int) -> None:
        """So many MiB are dirty in other files, and no more."""
        for n, fd in enumerate(self.others):
            if n * 64 >= size:
                os.fsync(fd)
                continue
            for at in range(0, 64 * MIB, MIB):
                os.pwrite(fd, b"\x5a" * MIB, at)
        found = self.region.stat()["tracker"]["dirty_bytes"]
        if found != size * MIB:
            raise SystemExit(f"{found} bytes are dirty, not {size} MiB")

    @contextlib.contextmanager
    def mapped(self, size: int):
        """So many MiB of another file are mapped here, and each page of that was stored to."""
        if not size:
            yield
            return
        with open(self.own / f"mapped{size}", "r+b") as file, mmap.mmap(file.fileno(), size * MIB) as area:
            area[::PAGE] = b"\x5a" * (size * MIB // PAGE)
            yield

    def run(self) -> None:
        for number in range(self.args.rounds):
            for name in list(self.args.sizes)[:: 1 if number % 2 else -1]:
                self.turn(f"{self.track}, file of {name}", name, number)
            for size in self.args.dirty[:: 1 if number % 2 else -1]:
                self.dirty(size)
                self.turn(f"{self.track}, {size} MiB dirty in other files", min(self.args.sizes), number)
            self.dirty(0)
            for size in self.args.mapped[:: 1 if number % 2 else -1]:
                with self.mapped(size):
                    self.turn(f"{self.track}, {size} MiB mapped of other files", min(self.args.sizes), number)

    def close(self) -> None:
        for fd in self.others:
            os.close(fd)


class Served:
    """Native service without a mount: a file of BLOCKS blocks in a region of its own."""

    def __init__(self, stack: contextlib.ExitStack):
        from mounts import PREFIX

        from daxfs.data._serve import DIRECT, WRITE, Server
        from daxfs.data.file_io import FileIo
        from daxfs.meta import fs, mkfs, namespace
        from daxfs.region import Region, create_file

        path = f"/dev/shm/{PREFIX}fsync-{os.getpid()}"
        create_file(path, 64 * MIB)
        stack.callback(os.unlink, path)
        region = stack.enter_context(Region.open([path]))
        mkfs.make(region, mkfs.plan(region))
        self.io = FileIo(fs.mount(region), write="cached")
        node = self.io.fs.open(namespace.create(self.io.fs, 1, b"file", 0o100644, namespace.ROOT).ino)
        self.io.opened(node)
        self.io.write(node, 0, bytes(BLOCKS * PAGE))
        self.io.fs.journal.settle()
        self.server = server = Server(self.io.dax)
        server.max_write, server.writes, server.inode_limit = MIB, True, self.io.fs.inodes.limit
        self.fh, self.ino = server.open(node.map, node.ino, WRITE | DIRECT), node.ino
        self.sync = self._message(_FSYNC, struct.pack("<QII", self.fh, 0, 0))
        self.writes = [self._message(_WRITE, struct.pack("<QQIIQII", self.fh, n * PAGE, PAGE, 0, 0, 0, 0)
                                     + bytes([n + 1]) * PAGE) for n in range(BLOCKS)]

    def _message(self, opcode: int, body: bytes) -> bytes:
        return _HEADER.pack(_HEADER.size + len(body), opcode, 2, self.ino, 0, 0, 0, 0, 0) + body

    def turn(self, calls: int) -> tuple[float, float]:
        """µs of one fsync in the mean, and of its phases flush and drain."""
        before = self.server.counts()["fsync"].snapshot()
        for n in range(calls):
            self.server.feed(self.writes[n % BLOCKS])
            self.server.feed(self.sync)
        after = self.server.counts()["fsync"].snapshot()
        if after["count"] - before["count"] != calls or after["phases"]["python"]["total_ns"]:
            raise SystemExit("not all fsyncs were served natively")

        def spent(*names):
            return sum(after["phases"][name]["total_ns"] - before["phases"][name]["total_ns"]
                       for name in names) / calls / 1000
        return spent(*after["phases"]), spent("flush", "drain")


def in_process(args, keep) -> None:
    """The same fsync, and a plain flush and drain, in turns."""
    from daxfs._emulate import Emulation
    from daxfs._flush import Flush

    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cpus)
        served = Served(stack)
        plain = Emulation(Flush(), **FREE)
        served.turn(args.calls)
        for _ in range(args.rounds * 20):
            whole, flushed = served.turn(200)
            for name, value in (("inside", whole), ("flush + drain", flushed),
                                ("plain", plain.measure(PAGE // 64, False, False, 64)[1] / 1000)):
                keep("in this process", name, value)


def rows(report: Report, args) -> None:
    found = {what: {name: statistics.median(values) for name, values in kept.items()}
             for what, kept in report.samples.items()}
    for what, medians in found.items():
        if "caller" in medians:
            report.add(what, [medians["caller"], medians["inside"], medians["flush + drain"], ""],
                       medians["caller"], CALLER)
    for track in args.tracks:
        for kind in ("file of", "MiB dirty", "MiB mapped"):
            some = [medians["caller"] for what, medians in found.items()
                    if what.startswith(f"{track},") and kind in what]
            ratio = max(some) / min(some)
            report.add(f"{track}: slowest / fastest, {kind} …", [ratio, "", "", ""], ratio, RATIO)
    here = found["in this process"]
    more = statistics.median(a - b for a, b in zip(*(report.samples["in this process"][name]
                                                     for name in ("inside", "plain")), strict=True))
    report.add("in this process: more than plain", ["", here["inside"], here["flush + drain"], here["plain"]],
               more, MORE)


def arguments():
    parser = bench.parser(__doc__, rounds=15)
    parser.add_argument("--calls", type=int, default=2000, help="fsyncs of a turn (default 2000)")
    args = parser.parse_args()
    args.sizes, args.dirty, args.mapped, args.tracks = SIZES, DIRTY, MAPPED, TRACKS
    if args.quick:
        args.sizes, args.dirty, args.mapped = {"1 MiB": MIB, "64 MiB": 64 * MIB}, (0, 64), (0, 64)
        args.rounds, args.calls = 3, 200
    return args


def main() -> int:
    from mounts import MountedRegion, why_no_transport
    args = arguments()
    if why := why_no_transport("uring"):
        raise SystemExit(f"transport=uring: {why}")
    report = Report("fsync of one dirty 4 KiB block, in turns (medians)",
                    ["caller, µs", "inside, µs", "flush + drain", "plain"], args)

    def keep(what: str, name: str, value: float) -> None:
        report.samples.setdefault(what, {}).setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory(prefix="fsync-bench-") as folder:
        client = bench.compiled(Path(folder), "fsync")
        for track in args.tracks:
            options = ",".join(filter(None, (f"write=cached,track={track}", args.options)))
            # Of packed files, and as much again as copies of their metadata could take.
            room = sum(args.sizes.values()) + max(args.dirty) * MIB + GIB
            with MountedRegion(room, options=options, transport="uring", pool="always",
                               room=max(args.mapped) * MIB + GIB) as region:
                region.mount()
                mounted = Mounted(args, region, client, track, keep)
                mounted.run()
                mounted.close()
    in_process(args, keep)
    rows(report, args)
    print(f"load while measuring: {' '.join(f'{load:.2f}' for load in os.getloadavg())} (1, 5, 15 minutes)")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
