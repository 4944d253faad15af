# SPDX-License-Identifier: MIT
"""The checks that cases name: `python -m guest.checks NAME [ARG...]`, on the source of kind GUEST_KIND.

Each makes its own region, unless it says otherwise, and takes it away; an AssertionError is its verdict.
"""

import inspect
import json
import mmap
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import mounts

from tests.posix.table import all_cases

from . import nvdimm
from .cases import CUT_KINDS
from .vmas import mappings

MIB = 1 << 20
KIND, BOOT = os.environ["GUEST_KIND"], os.environ["GUEST_BOOT"]
SIZE = 96 * MIB  # of regions that are files
FILES = 12
DATA = 48 * MIB  # of a file that fills half of that
# Names and attributes do not depend on the source, and all 1,400 cases take longer than 15 minutes here.
POSIX_AREAS = ("append", "copy", "fallocate", "fsync", "holes", "io", "mmap", "seek", "tmpfile", "truncate")


class Found(mounts.MountedRegion):
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
    return (Found if found else mounts.MountedRegion)(
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
    source = source_of(KIND, part)
    if KIND.endswith("-pool"):
        (source / "region").unlink()
        source.rmdir()
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
    with region(options="write=cached,drain=fsync") as one:
        _granularity(one)
        _fsync(one)
        _mapping(one)


def _granularity(one) -> None:
    """Detected as it is, by daxfs info and on a mount; nothing is called emulated."""
    stat = one.stat()
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


def posix(transport: str) -> None:
    """Data in the POSIX table agree with tmpfs: two halves at once, each on a region of its own."""
    with ExitStack() as stack:
        runs = []
        for number, areas in enumerate(_halves()):
            one = stack.enter_context(region(transport, "allow_other", f"-{number}"))
            args = [arg for area in areas for arg in ("--only", area)]
            runs.append(subprocess.Popen([sys.executable, "-P", "-m", "tests.posix", "--timeout", "120",
                                          *args, one.path]))  # fmt: skip
        ends = [run.wait() for run in runs]
        assert ends == [0, 0], ends


def load_until_cut() -> None:
    """Files made and overwritten with fsync on several kinds at once, each told to the host when it is
    durable, until the host takes the power away."""
    port = int(os.environ["GUEST_EVENTS"])
    made = {kind: open_region(kind).mount() for kind in CUT_KINDS}
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
            event = {"event": "note", "load": True, "key": kind, "value": n}
            os.write(port, (json.dumps(event) + "\n").encode())
        n += 1
    raise AssertionError(f"nobody cut the power; {n} files")


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
        # The next number may have overwritten it in part.
        allowed = zip(counter(noted), counter(noted + 1), strict=True)
        number = (one.path / "counter").read_bytes()
        assert all(byte in two for byte, two in zip(number, allowed, strict=True)), number[:40]
        (one.path / "new").write_bytes(content(1))
        one.umount()
        done = one.fsck("-n")
        assert done.returncode == 0, done
    assert mounts.take_complaints() == []


CHECKS = (doctor, source, files, posix, load_until_cut, after_cut)


def main() -> None:
    named = {check.__name__: check for check in CHECKS}
    check = named[sys.argv[1]]
    print(inspect.getdoc(check), flush=True)
    check(*sys.argv[2:])


if __name__ == "__main__":
    main()
