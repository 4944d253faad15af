# SPDX-License-Identifier: MIT
"""The words of the report: the argument that the experiments replay, as questions, and what its words mean.

The argument is the one of the kernel developers in 2015, of the threads that brought dirty tracking to DAX. A
question knows by its axes which family of a run has an answer to show. Plain text, nothing is escaped here.
"""

from lab.cells import View

LEAD = (
    "daxfs is a file system in user space for persistent memory, real or emulated, in which every policy of "
    "the kernel developers' argument about fsync is a switch. This page shows what they cost, from samples "
    "that lie beside it: first the argument, with links to the figures that show something of it, then each "
    "experiment: what was run, what to beware of, figures, tables."
)

ARGUMENT = (
    "In 2015 the kernel developers argued about what fsync owes to memory that is storage. One side put "
    "dirty tracking into the driver: coarse on purpose, a stopgap, because writes should go past the "
    "cache anyway, and a platform that flushes by itself on power failure needs none of it. The other "
    "side wanted it in the file system: fsync has to cost what was made dirty in that file, and a driver "
    "knows neither files nor mappings and can't clear a bit. Both agree on three steps: write, write the "
    "lines back if they went through the cache, then one fence. When each of them happens is policy, and "
    "daxfs has the policies as switches on the same file system."
)


COARSE, FINE = {"extent", "extent+clear"}, {"pte", "pmd", "line"}


def _names(view: View, axis: str) -> set:
    return {str(value).lower() for value in view.values(axis)} if axis in view.run.axes else set()


def _all_names(view: View) -> set:
    return {str(value).lower() for axis in view.run.axes for value in view.values(axis)
            if isinstance(value, str)}  # fmt: skip


def _words(view: View) -> set:
    """Names, and the words that longer names consist of: `transport=uring,write=nt` has nt."""
    found = _all_names(view)
    return found | {word for name in found for word in name.replace("=", " ").replace(",", " ").split()}


def _coarse(view: View) -> bool:
    names = _all_names(view)
    return bool(names & COARSE) and bool(names & FINE)


def _durable(view: View) -> bool:
    """Whether it is about making durable: page faults and reads have files and file systems, too."""
    return "sync" in f"{view.family.title} {view.family.words} {view.measure['label']}".lower()


def _mapped(view: View) -> bool:
    return view.family.x in ("mapped", "size", "file", "file_bytes", "mapped_bytes") and _durable(view)


def _flushers(view: View) -> bool:
    return len(view.values("flushers")) > 1


def _huge(view: View) -> bool:
    sizes = {4096, 2 << 20}
    if any(sizes <= view.values(axis) for axis in ("page", "pages", "unit")):
        return True
    return len(view.values("huge")) > 1 or {"pte", "pmd"} <= _words(view)


# (question, what the sides said, whether a family shows it)
QUESTIONS = (
    (
        "A coarse bitmap in the driver, or dirty entries of each inode?",
        "The driver's proposal cuts the device into 256 extents and writes back every active one; bits "
        "are never cleared (track=extent; extent+clear clears once no file is open). Its critics: an "
        "fsync then flushes what others dirtied, again and again. The counter-proposal keeps entries for "
        "each inode, flushes those once and protects them again (track=pte, pmd, line). Look at how far "
        "apart the lines are where little is dirty, and where they meet.",
        _coarse,
    ),
    (
        "Does fsync cost what is dirty, or what is mapped?",
        "A driver that does not know mappings flushes everything for an msync of one page. With entries "
        "for each inode the cost should not grow with the file. A flat line says that it does not.",
        _mapped,
    ),
    (
        "Flush at the write, or at the fsync? Past the cache, or through it?",
        "For synchronous I/O the driver's side has non-temporal stores and one fence, so that fsync "
        "finds nothing to do (write=nt). Through the cache (write=cached) a write is cheap and fsync "
        "pays for it. Add both: what counts is write and fsync together.",
        lambda view: {"nt", "cached"} <= _words(view),
    ),
    (
        "One flusher, or four?",
        "The driver's proposal wrote back with four threads, in pieces of 1 MiB. More threads help only "
        "while one of them does not fill the memory's bandwidth, and cost a handshake each.",
        _flushers,
    ),
    (
        "2 MiB, or 4 KiB?",
        "Entries of 2 MiB are few and cheap to find, and a fault brings 512 pages at once; but one dirty "
        "line then costs a write-back of 2 MiB. Entries of 4 KiB cost a fault and a look for each page.",
        _huge,
    ),
    (
        "No tracking at all?",
        "Where the platform flushes on power failure, or the program flushes for itself, fsync need only "
        "be a fence (track=none). It is the floor that the others are measured against, and after it "
        "nothing is durable; what they have above it is the write-back itself, and the price of tracking.",
        lambda view: "none" in _names(view, "track"),
    ),
    (
        "Is DAX with fsync faster than buffered with fsync?",
        "In the thread DAX wrote 305 MiB/s where the buffered file system on the same memory wrote 1.2 "
        "GiB/s, and the answer was that it should be the other way round, or something is wrong.",
        lambda view: bool({"ext4", "xfs"} & _words(view)) and _durable(view),
    ),
)

GLOSSARY = (
    (
        "cell",
        "One point of the experiment: one value for each axis. A round visits every cell once, in a new "
        "order; the samples of all rounds are taken together.",
    ),
    (
        "median, quartiles, p99",
        "Of all samples of a cell. Half of them lie between the quartiles: bands and whiskers in the "
        "figures. 99 of 100 are not above p99; with fewer than 100 samples that is nearly the largest "
        "one, and it is printed faint.",
    ),
    (
        "ratio",
        "A median over the median of the first line or bar in the same place.",
    ),
    (
        "load",
        "Load average of the last minute, at each visit. The measurement itself makes some of it.",
    ),
    (
        "dirty",
        "Bytes that were stored since the last fsync, and whose cache lines may not have reached the "
        "memory.",
    ),
    (
        "flush, drain",
        "Flush: write-back of the cache lines of a range (clwb and the like) is queued. Drain: the fence "
        "that waits for it. Flushed bytes are counted in whole lines.",
    ),
    (
        "track=",
        "What fsync takes for dirty. pte: units of 4 KiB of each file; pmd: of 2 MiB; line: of 64 B; "
        "extent: 256ths of the whole region, never cleared; extent+clear: the same, cleared once no file "
        "is open; none: nothing is tracked, fsync is a drain.",
    ),
    (
        "write=",
        "nt: write() stores past the cache, so that nothing of it is dirty. cached: it stores through "
        "the cache and fsync writes back.",
    ),
    (
        "packed, own range",
        "Where a file's data is: in the range that all files share, or in a range of its own, which "
        "programs can map directly (the DAX flag).",
    ),
    (
        "mapped",
        "The part of a file that a program has mapped. mmap: by plain mmap. observed: the daemon is told "
        "by the client library. fault=user: the daemon answers the faults itself. fault=kernel: the "
        "kernel does, and the daemon reads from its page tables what was written.",
    ),
    (
        "PTE, PMD",
        "A mapping of 4 KiB, and one of 2 MiB.",
    ),
    (
        "flushers=",
        "Threads that share a large write-back, in pieces of 1 MiB.",
    ),
    (
        "transport",
        "How requests reach the daemon: uring (FUSE over io_uring), dev (/dev/fuse, native threads), "
        "pyfuse3 (Python, the reference).",
    ),
    (
        "emulate=",
        "The daemon makes stores and flushes take as long as a model of a slower medium says: dram, "
        "pmem1, pmem2, cxl. Times alone are changed.",
    ),
    (
        "emulated region",
        "A region on ordinary memory (tmpfs). Flushes and fences are real and cost what they cost, but a "
        "power failure loses all of it.",
    ),
    (
        "phases",
        "Where the daemon spent a call, on the average. lock: waiting for the file's lock; look: what "
        "programs stored through mappings (page tables, entries of the fault handler); walk: which units "
        "are dirty, and marking them clean; flush: queueing their lines; drain: until they are durable; "
        "meta: times, the journal, the fsync of a range's own file; reply: handing the answer over; "
        "python: Python, and waiting for it; other: the rest inside the daemon. They are means, so what "
        "is outside of the daemon (the kernel's way there and back, waking threads) is the caller's mean "
        "without them; a few slow calls make a mean longer than the median. What the daemon does after "
        "its answer is in them too, so that they can be longer than the call.",
    ),
)
