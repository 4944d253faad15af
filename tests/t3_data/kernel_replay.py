# SPDX-License-Identifier: MIT
"""../data/kernel_dax_cases.json read and replayed: its cases become accesses of dax_simulation.File."""

import json
import re
from pathlib import Path

from dax_simulation import PAGE, PMD, File, Mapping

from daxfs._iomap import MAPPED, UNWRITTEN

ROWS = json.loads((Path(__file__).parents[1] / "data/kernel_dax_cases.json").read_text())["rows"]
MIB = 1 << 20
EXTENT = re.compile(r"(\d+)K\+(\d+)K@(\d+)K[=!](u?)")
# Of the words of a row; all others are the file system's or the hardware's (see NOT_OF_FAULTS).
WORD = re.compile(r"zeroPMD|zeroPTE|unmap\(\d+,\d+\)|(?:PMD|PTE)\(\w+,pg0x[0-9a-f]+\)=[A-Z_|]+|mkclean"
                  r"|finish_sync:\w+|flush\(pg0x[0-9a-f]+,\d+p\)|del\(\d+\)")  # fmt: skip
NOT_OF_FAULTS = re.compile(r"WB\[0x[0-9a-f]+-(?:EOF|0x[0-9a-f]+)|\]|devflush|wb\d+|edge\d+|SYNC\{|rw\(|\)"
                           r"|split_pmd|unmap\(0,all\)|layout_busy|zero\(\d+,\d+\)")  # fmt: skip
REASON_OF = {
    "PMD would extend past EOF": "end-of-file",
    "iomap extent <2MiB": "short-extent",
    "iomap hole <2MiB": "short-extent",
    "PMD would extend past vm_end": "after-mapping",
    "PMD would start before vm_start": "before-mapping",
    "physical extent not 2MiB-aligned": "unaligned-extent",
    "PTE-sized entry already": "pte-entry",
    "VA/file-offset colour": "colour",
    "write to MAP_PRIVATE": "cow",
}
# One result, another name: daxfs's handler gets LOCKED and copies; MAJOR says NOPAGE as well.
NAME_OF = {"DONE_COW": "LOCKED", "MAJOR|NOPAGE": "MAJOR"}

# Facts of the cases that their names state, or that their answers leave no choice about.
SIZES = {"b4": 8 * MIB, "c1": MIB, "c2": MIB, "c3": 2 * MIB + PAGE, "c4": 2 * MIB, "c5": 2 * MIB - 1,
         "c6": MIB, "f1": 2 * MIB, "g1": 4196, "i3": 8 * MIB, "k2": 8 * MIB}  # fmt: skip
LENGTHS = {"c1": 512, "c2": 256, "c6": 512, "d2": 256, "g1": 512, "g4": 2}  # pages of the mapping
ODD = {"d1": {"address": (1 << 20) + 1}, "d3": {"offset": 1}}
TOUCHED = {"k6": 0}  # bytes that were read before the case's first row
# b4's extents were read before the block was allocated.
LATE_EXTENTS = {"b4"}

# Steps that are no fault, no writeback and no change of the layout. Not replayed, but counted.
LEFT_OUT = [
    ("read(2) and write(2): the data path, which other tests hold against a plain file",
     r"^(O_DIRECT )?p(write|read)(v2)? (?!\(|.*map)|^pwrite @|^pread (file|@|1 )"),
    ("flags of mmap: the kernel's business, FUSE refuses MAP_SYNC", r"^mmap (MAP_|PROT_)(?!.*POPULATE)"),
    ("io_uring's long-term pins: the file system below decides", r"^IORING"),
    ("a question of the test itself, or a call that maps and flushes nothing",
     r"^compare$|^munlockall$|^unlink$"),
    ("calls that FUSE does not hand on to its daemon", r"^sync_file_range|^syncfs"),
]  # fmt: skip


def left_out(step):
    """Why *step* is not replayed, or None."""
    return next((why for why, pattern in LEFT_OUT if re.search(pattern, step)), None)


def position(text):
    """Bytes: "2M+4096", "4096+200", "2M-1", "map+2M"."""
    text = text.removeprefix("map+")
    units = {"M": MIB, "K": 1024, "": 1}
    return sum(int(n) * units[unit] for n, unit in re.findall(r"(-?\d+)([MK]?)", text))


def extents_of(text):
    return [(UNWRITTEN if u else MAPPED, *(int(n) // 4 for n in (at, length, place)))
            for at, length, place, u in EXTENT.findall(text)]  # fmt: skip


def words_of(text):
    """The words of a row that speak of faults and flushes, as File.words has them; none is overlooked."""
    rest = NOT_OF_FAULTS.sub("", WORD.sub("", text)).split()
    assert not rest, rest
    out, clean = [], 0
    for found in WORD.findall(text):
        name, equals, result = found.partition("=")
        word = name + equals + NAME_OF.get(result, result)
        if word == "mkclean":
            clean += 1
        elif word.startswith("flush"):
            out.append(f"{word[:-1]},{clean} mkclean)")
            clean = 0
        elif not (word.endswith("FALLBACK") and out and out[-1] == word):  # ext4 tries it twice
            out.append(word)
    # A truncation drops what is behind the new end before the entry that it cuts; daxfs in ascending order.
    gone = sorted((w for w in out if w.startswith("del")), key=lambda w: int(w[4:-1]))
    return [w for w in out if not w.startswith("del")] + gone


def size_of(name, case, extents):
    named = re.search(r"(?:hole|written|fallocate)(\d+)M", case)
    if name in SIZES:
        return SIZES[name]
    return int(named[1]) * MIB if named else max(e[1] + e[2] for e in extents) * PAGE


class Replay:
    """One case on one of the kernel's file systems, row by row."""

    def __init__(self, case, extents):
        self.case, self.name = case, case.split()[0]
        self.file = File(size_of(self.name, case, extents))
        self.map = None
        self.number = 1
        self.new_map(pmd="NOHUGEPAGE" not in case and "PTE-entry" not in case, sync="MAP_SYNC" in case)
        self.file.extents = extents
        if self.name in TOUCHED:
            self.file.access(self.map, TOUCHED[self.name], False)
            self.file.told()

    def new_map(self, **how):
        """A mapping in place of the one that there was."""
        how = {"pages": LENGTHS.get(self.name, 4 * PMD), "shared": "PRIVATE" not in self.case} | how
        self.map = Mapping(**how, **ODD.get(self.name, {}))
        self.file.maps = [self.map]

    def another(self, number):
        """Mapping *number*, 1 or 2, beside the other one."""
        while len(self.file.maps) < number:
            self.file.maps.append(Mapping(address=(number << 21)))
        return self.file.maps[number - 1]

    def row(self, step, extents):
        """Do *step* with *extents* there; what File.told says."""
        self.file.extents = extents
        for pattern, does in STEPS:
            found = re.search(pattern, step)
            if found:
                does(self, step, found)
                return self.file.told()
        raise ValueError(f"{self.case}: {step}: not understood")

    def do_access(self, step, found):
        if step.startswith("new map"):
            self.new_map()
        which = re.search(r"via map(\d)", step)
        m = self.another(int(which[1])) if which else self.map
        m.pmd = (m.pmd or "re-enable" in step) and not (self.name == "a11" and "re-enable" not in step)
        self.file.access(m, position(found[2]), found[1] == "write")

    def do_populate(self, step, found):
        for slot in range(self.map.pages // PMD):
            self.file.access(self.map, slot * PMD * PAGE, False)

    def do_fork(self, step, found):
        child = self.another(2)  # a fork copies no page tables of shared mappings
        for pos in re.findall(r"@(\d\w*)", step):
            self.file.access(child, position(pos), True)

    def do_direct_io(self, step, found):
        """The mapping is the buffer: it is read for a write to the device, and written for a read."""
        pos = re.search(r"map(?:ped)? @(\w+)", step)
        self.file.access(self.map, position(pos[1]) if pos else 0, found[1] == "read")

    def do_release(self, step, found):
        low, high = (position(found[1]), position(found[2]))
        self.file.release(-(-low // PAGE), high // PAGE)

    def do_punch_at(self, step, found):
        at, length = position(found[2]), found[1]
        low, high = map(position, length.split("..")) if ".." in length else (0, position(length))
        if (at + high) // PAGE > -(-(at + low) // PAGE):
            self.file.release(-(-(at + low) // PAGE), (at + high) // PAGE)

    def do_mprotect(self, step, found):
        first = "first 4K" in step
        if first:  # the kernel splits a file's PMD by unmapping it
            self.map.tables = {s: t for s, t in self.map.tables.items() if isinstance(t, dict)}
        self.map.splits = (1,) if first else ()


STEPS = [
    (r"^mmap\(.*POPULATE|^mlock all", Replay.do_populate),
    (r"^fork", Replay.do_fork),
    (r"^p(read|write)\(vda", Replay.do_direct_io),
    (r"^pwrite\(F, M(\+)(\w+)", lambda r, s, f: r.file.access(r.map, position(f[2]), False)),
    (r"^pread\(F, M(\+)(\w+)", lambda r, s, f: r.file.access(r.map, position(f[2]), True)),
    (r"^(mlock 4K) @(\w+)|^vmsplice page 0", lambda r, s, f: r.file.access(r.map, 0, False)),
    (r"^f(data)?sync", lambda r, s, f: r.file.writeback()),
    (r"^msync\(MS_ASYNC\)", lambda r, s, f: None),
    (r"^msync.* page 0", lambda r, s, f: r.file.writeback(0, 0)),
    (r"ftruncate(?: back)?(?: to |\()([\w+]+)", lambda r, s, f: r.file.truncate(position(f[1]))),
    (r"^punch (?:unaligned )?(\S+) ?@(\w+)", Replay.do_punch_at),
    (r"^(?:punch|fallocate ZERO_RANGE) (\d\w*)-(\w+)", Replay.do_release),
    (r"^munmap\+close \(evict\)", lambda r, s, f: r.file.release(0, 1 << 32)),
    (r"^mprotect", Replay.do_mprotect),
    (r"\b(read|write)(?: fault)? @([\w+-]+)", Replay.do_access),
]  # fmt: skip


def replay_all():
    """Yield (row number, file system, what File.told says or None: left out)."""
    for fs in ("xfs", "ext4"):
        now = None
        for number, row in enumerate(ROWS):
            said = row[fs]
            late = row["case"].split()[0] in LATE_EXTENTS and not said["extents_before"]
            extents = extents_of(said["extents_after" if late else "extents_before"])
            if now is None or now.case != row["case"]:
                now = Replay(row["case"], extents)
            yield number, fs, None if left_out(row["step"]) else now.row(row["step"], extents)


def kernels(row, fs):
    """A row's answer in the form of File.told; major faults and mtime are None where it does not tell."""
    said = row[fs]
    words = words_of(said["decision"])
    given = said["fallback_reason"]
    reasons = [next(ours for text, ours in REASON_OF.items() if why.startswith(text)) for why in given]
    if not any(w.startswith(("PMD", "PTE")) for w in words) or "rw(" in said["decision"]:
        return words, reasons, None, None  # no fault, or inside a call that itself changes mtime
    return words, reasons, said["majflt"], bool(said["mtime_changed"])


def brief(words, reasons):
    """Words and reasons on one line; flushes of page after page as one."""
    out, first, length = [], None, 0
    for word in [*words, ""]:
        page = re.fullmatch(r"flush\(pg(0x\w+),1p,1 mkclean\)", word)
        if page and first is not None and int(page[1], 16) == first + length:
            length += 1
            continue
        if first is not None:
            out.append(f"{length} x flush(1p) from pg{first:#x}" if length > 1 else f"flush(pg{first:#x},1p)")
        first, length = (int(page[1], 16), 1) if page else (None, 0)
        out += [word] if word and not page else []
    return ", ".join([*out, *(f"reason {r}" for r in reasons)]) or "nothing"
