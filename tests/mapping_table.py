# SPDX-License-Identifier: MIT
"""What accesses to a mount reach, found out: the cells of the table in docs/mappings.md.

`look` does each access on a mount and says by what it saw which way it went; `documented` reads the table.
tests/t4_fuse/test_mapping_table.py compares the rows, and the guest of `make test-vm` those of its NVDIMM.
"""

import mmap
import os
import re
from contextlib import contextmanager
from pathlib import Path

import mounts
from guest.vmas import mappings

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/mappings.md"
HEAD = "| source, transport | read, write | mmap | mmap, DAX flag | fsync, DAX flag |"
SIZE = 8 * mounts.MIB
PAGE = 4096


def documented() -> dict[str, dict[str, str]]:
    """{source, transport: {access: cell}} as the document has it."""
    lines = DOCUMENT.read_text().split(HEAD)[1].splitlines()[2:]
    accesses = [cell.strip() for cell in HEAD.strip("|").split("|")][1:]
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = dict(zip(accesses, cells, strict=True))
    return rows


def _requests(one, what: str) -> int:
    """How many requests of a kind the daemon has answered."""
    return one.stat()["operations"].get(what, {"count": 0})["count"]


def _reading(one, path: Path) -> str:
    """A read of what was just read goes to the daemon again, or not."""
    with open(path, "rb", buffering=0) as file:
        os.pread(file.fileno(), PAGE, 0)
        before = _requests(one, "read")
        os.pread(file.fileno(), PAGE, 0)
        return "dax_io" if _requests(one, "read") > before else "page cache, dax_io"


def _mapping(one, path: Path) -> str:
    """Pages of a mapping that are touched are asked for, or they are the range's own. The file is a hole."""
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), SIZE) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)  # which huge=advise waits for
        before = _requests(one, "read")
        for at in range(0, SIZE, PAGE):
            memory[at] = 1
        if _requests(one, "read") > before:
            return "page cache"
        (area,) = [area for area in mappings(os.getpid()) if area.path == str(path)]
        assert area.present == SIZE, area
        return f"direct, {'2 MiB' if area.huge else '4 KiB'}"


def _dirty(path: Path) -> int:
    """Bytes of this process's mappings of *path* that the kernel has for dirty, by its page tables."""
    text = Path("/proc/self/smaps").read_text()
    (block,) = (part for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text) if f"{path}\n" in part)
    return sum(int(n) for n in re.findall(r"(?:Shared|Private)_Dirty: +(\d+)", block)) * 1024


@contextmanager
def _cleaned(_one, path: Path):
    """A list that is not empty at the end if dirty pages of this process's mapping are clean then."""
    dirty, done = _dirty(path), []
    assert dirty, "nothing is dirty: what fsync does can't be seen"
    yield done
    if not _dirty(path):
        done.append(path)


def _fsync(one, path: Path, written_back) -> str:
    """What an fsync does about stores through a mapping."""
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), SIZE) as memory:
        before, sent = one.stat()["tracker"], _requests(one, "write")
        memory[5 * PAGE] = 1
        with written_back(one, path) as written:
            os.fsync(file.fileno())
        after = one.stat()["tracker"]
        if _requests(one, "write") > sent:
            return "sent by the page cache"
        if after["coarse_fsyncs"] > before["coarse_fsyncs"]:
            assert after["coarse_bytes"] - before["coarse_bytes"] == SIZE
            return "every page"
        return "the range's own" if written else "nothing"


def look(one: mounts.MountedRegion, written_back=_cleaned) -> dict[str, str]:
    """The cells of a mount, whose root directory can have the DAX flag or not.

    *written_back* is called with the mount and a file's path, and gives a context manager: its list is not
    empty at the end if the file system below has written stores to the file's range back.
    """
    plain, dax = one.path / "plain", one.path / "dax"
    for path, flag in ((plain, False), (dax, True)):
        path.touch()
        if one.transport != "pyfuse3":  # which has no ioctls; there the root's flag is handed down
            mounts.set_dax(path, flag)
        os.truncate(path, SIZE)
    mapped = _mapping(one, plain), _mapping(one, dax)
    return {
        "read, write": _reading(one, dax),
        "mmap": mapped[0],
        "mmap, DAX flag": mapped[1],
        "fsync, DAX flag": _fsync(one, dax, written_back),
    }
