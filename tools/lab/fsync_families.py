# SPDX-License-Identifier: MIT
"""What fsync_sweep shows: families of cells, each a figure with words for its reader.

``--quick`` has a part of each. Limits: plain data; what a cell means, and its visit, are in fsync_cells.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lab.fsync_cells import AXES, BIG, GIB, KIB, MIB, Bench, cell_of, why_not
from lab.plan import Cell, Family

KINDS = ("clwb", "clflushopt", "clflush", "none")
QUICK = {"mapped": 16 * MIB}
FOUR = ("pte", "pmd", "extent", "none")
FIVE = ("pte", "line", "pmd", "extent", "none")
PINNED = "The program is on one CPU; by uring the daemon's thread that serves it is on the same one."
OBSERVED = """Before an fsync of a file with observed mappings the daemon looks into the page tables of those
    who map it. It asks Python for that, and another thread: that way (phase python) hardly depends on what is
    dirty, and is most of the time where little is flushed. The look itself is short."""


@dataclass
class Shape:
    """A family before its cells are made.

    *crossed*: for --quick or not, the values of axes to be crossed, any number of such crosses. *words*:
    spaces and line ends in it don't matter.
    """

    title: str
    words: str
    line: tuple[str, ...]
    crossed: Callable[[bool], list[dict]]
    x: str | None = None
    panel: tuple[str, ...] = ()
    measure: str = "ns"
    draw: tuple[str, ...] = ("lines",)


def _dirty(quick: bool) -> list[dict]:
    if quick:
        sizes = (64, 4 * KIB, 256 * KIB, 4 * MIB)
        return [{"dirty": sizes, "track": FIVE, "via": ("write",)},
                {"dirty": sizes[1:], "track": FOUR, "via": ("mmap", "kernel", "user")}]
    small = (64, 512, 4 * KIB, 32 * KIB, 256 * KIB, 2 * MIB, 16 * MIB, 64 * MIB)
    return [{"dirty": small, "track": FIVE, "via": ("write", "mmap", "kernel", "user")},
            {"dirty": (256 * MIB, GIB), "mapped": (GIB,), "track": FIVE,
             "via": ("write", "mmap", "kernel", "user")}]


def _mapped(quick: bool) -> list[dict]:
    sizes = (MIB, 8 * MIB, 64 * MIB) if quick else tuple(MIB << n for n in (0, 2, 4, 6, 8, 10, 12))
    vias = ("write", "mmap", "kernel") if quick else ("write", "mmap", "kernel", "kernel-pte", "user")
    return [{"mapped": sizes, "track": FOUR, "via": vias, "place": ("own",)}]


def _other(quick: bool) -> list[dict]:
    sizes = (64 * KIB, MIB, 16 * MIB) if quick else (64 * KIB, 512 * KIB, 4 * MIB, 32 * MIB, 256 * MIB)
    return [{"other": sizes, "mapped": (16 * MIB,), "track": ("pte", "pmd", "extent"), "history": ("fresh",)}]


def _history(quick: bool) -> list[dict]:
    sizes = (4 * KIB, MIB) if quick else (64, 4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB)
    return [{"dirty": sizes, "track": ("pte",)},
            {"dirty": sizes, "track": ("extent",), "history": ("used", "fresh")},
            {"dirty": sizes, "track": ("extent+clear",), "history": ("used", "closed")}]


def _flush(quick: bool) -> list[dict]:
    sizes = (64, 4 * KIB, 256 * KIB) if quick else (64, 512, 4 * KIB, 32 * KIB, 256 * KIB, 2 * MIB, 16 * MIB)
    return [{"dirty": sizes, "flush": KINDS[::2] + KINDS[3:] if quick else KINDS}]


def _flushers(quick: bool) -> list[dict]:
    if quick:
        return [{"dirty": (MIB, 16 * MIB, 64 * MIB), "mapped": (64 * MIB,), "flushers": (1, 2)}]
    return [{"dirty": tuple(MIB << n for n in (0, 1, 2, 4, 6)), "flushers": (1, 2, 4)},
            {"dirty": (256 * MIB, GIB), "mapped": (GIB,), "flushers": (1, 2, 4)},
            {"dirty": tuple(MIB << n for n in (0, 2, 4, 6)), "track": ("extent",), "flushers": (1, 2, 4)}]


def _nt(quick: bool) -> list[dict]:
    sizes = (64, 4 * KIB, MIB) if quick else (64, 256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB,
                                              4 * MIB, 16 * MIB)
    short = () if quick else ({"dirty": tuple(size for size in sizes if size <= 64 * KIB), "write": ("nt",),
                               "nt_threshold": (0, 4 * KIB, MIB)},)
    return [{"dirty": sizes, "write": ("cached",)},
            {"dirty": sizes, "write": ("nt",), "drain": ("write", "fsync")}, *short]


def _emulate(quick: bool) -> list[dict]:
    if quick:
        return [{"dirty": (4 * KIB, MIB), "track": ("pte", "pmd"),
                 "emulate": ("none", "pmem1-single", "cxl")}]
    return [{"dirty": (64, 4 * KIB, 64 * KIB, MIB, 16 * MIB), "track": FOUR,
             "emulate": ("none", "dram", "pmem1", "pmem1-single", "pmem2", "cxl")}]


def _transport(quick: bool) -> list[dict]:
    sizes = (4 * KIB, MIB) if quick else (64, 4 * KIB, 64 * KIB, MIB, 16 * MIB)
    return [{"dirty": sizes, "transport": ("uring", "dev", "pyfuse3")}]


def _faults(quick: bool) -> list[dict]:
    sizes = (4 * KIB, MIB) if quick else (4 * KIB, 32 * KIB, 256 * KIB, 2 * MIB, 16 * MIB)
    return [{"dirty": sizes, "via": ("kernel", "kernel-pte", "user"), "pattern": ("together", "scattered")}]


def _calls(quick: bool) -> list[dict]:
    calls, vias = ("fsync", "fdatasync", "msync"), ("mmap", "kernel", "kernel-pte", "user")
    return [{"call": calls[:2], "via": ("write",)},
            {"call": calls, "via": ("mmap",), "place": ("packed",)},
            {"call": calls, "via": vias[:2] if quick else vias, "place": ("own",)}]


SHAPES = {
    "dirty": Shape(
        "fsync against what is dirty, by policy and by way of storing",
        f"""{PINNED} Each sample stores so many bytes in one piece at a random place of a file, a multiple
        of their size (of 2 MiB from there on), so that none of them lies on two units where it fits in one,
        then times fsync. The file has 64 MiB (1 GiB from 256 MiB dirty on; with --quick 16 MiB), all of
        which was stored to before: so for track=extent, whose bits are never cleared, all of it is to be
        flushed, whatever was stored now; by one thread here, where the proposal had four (family flushers).
        pmd flushes 2 MiB for each that was touched, pte 4 KiB, line 64 bytes. none flushes nothing: the
        program has to. A plain mapping (mmap) tells nobody of its stores, so each fsync flushes the whole
        file. {OBSERVED} What was stored is known to 2 MiB there (kernel, user), and no policy can flush
        less.""",
        ("track",), _dirty, "dirty", ("via",), draw=("lines", "cdf", "phases")),
    "mapped": Shape(
        "fsync against the size of the file, 4 KiB of it dirty",
        f"""{PINNED} The file has a range of its own (place=own), all of it was stored to once, and all of it
        is mapped where stores go through a mapping; then 4 KiB are stored for each fsync. What depends on
        dirty bytes alone is flat; what flushes all of the file (extent; every policy with a plain mapping)
        rises with it. {OBSERVED} Not with pages of 4 KiB (kernel-pte), of which there are many to
        look at.""",
        ("track",), _mapped, "mapped", ("via",)),
    "other": Shape(
        "fsync of one file against what is dirty in another",
        f"""{PINNED} Two packed files: so many bytes of the one were stored, and nobody calls fsync there; of
        the other 4 KiB are stored for each fsync. With pte and pmd the first is none of the second one's
        business. With extent both are the region's, and the region is what is flushed: each call pays for
        what others did. (history=fresh: nothing but these two was ever stored to.)""",
        ("track",), _other, "other"),
    "history": Shape(
        "fsync with track=extent: after use, and on a fresh region",
        f"""{PINNED} extent, as its bits are never cleared, flushes all that was ever stored to. (An extent
        is a 256th of the region, 1 MiB of these 256; of a device of 256 GiB it would be 1 GiB, flushed from
        the first store on.) The same call costs more after all of the file was in use (used) than on a
        region where nothing but this piece was stored to, again and again at the same place (fresh).
        extent+clear clears once no file is open: which is no help while this one is (used), and all of it
        once it was closed and opened again (closed; the same place each time, too). pte for
        comparison.""",
        ("track", "history"), _history, "dirty"),
    "flush": Shape(
        "fsync by the instruction that writes back",
        f"""{PINNED} clwb and clflushopt let lines be written back side by side, clflush one after the other.
        none is a platform that flushes on power failure: fsync is a walk and a fence. What is left of it at a
        few bytes is the way to the daemon and back.""",
        ("flush",), _flush, "dirty"),
    "flushers": Shape(
        "fsync by the number of flushers",
        f"""{PINNED} From 3 MiB on, pieces of 1 MiB are shared with flushers= - 1 helpers; below that the
        lines have to lie on each other. Helpers need CPUs of their own: the run's facts say how many there
        are. track=extent is what several were proposed for: it flushes all that was ever stored to.""",
        ("flushers",), _flushers, "dirty", ("track",)),
    "nt": Shape(
        "write and fsync together: past the cache or through it",
        f"""{PINNED} Stores and fsync are timed together, as what is not paid in the one is paid in the other.
        cached: ordinary stores, written back by fsync. nt: past the cache; with drain=write each write(2)
        fences, and little is left for fsync; with drain=fsync the fence is fsync's. A write below
        nt_threshold= goes through the cache and is flushed at once. The samples of each half are in the file
        (store_ns, ns).""",
        ("write", "drain", "nt_threshold"), _nt, "dirty", measure="total_ns"),
    "emulate": Shape(
        "fsync on emulated media",
        f"""{PINNED} The daemon's write-back takes as long as it would to the medium (docs/emulation.md): the
        slower the medium, the more a coarse policy costs. Stores of programs cost what they cost here.""",
        ("emulate",), _emulate, "dirty", ("track",)),
    "transport": Shape(
        "fsync by transport",
        """The calling program is on one CPU. uring: a thread of the daemon on the same CPU answers. dev: one
        on any CPU, which the kernel may have to wake. pyfuse3: the reference in Python. The lines come
        together where the write-back itself takes longer than the way there.""",
        ("transport",), _transport, "dirty"),
    "faults": Shape(
        "fsync of observed mappings by fault mode and pattern",
        f"""{PINNED} kernel: pages of 2 MiB, so that what was stored is known to 2 MiB. kernel-pte: pages of
        4 KiB, more faults and more to look through, less to flush. user: the daemon answers the faults, and
        knows to 2 MiB. scattered: each 4 KiB at a random place of the file, so that with pages of 2 MiB
        soon all of the file is flushed; places may come twice: at a quarter of the file a tenth less is
        dirty. {OBSERVED}""",
        ("via",), _faults, "dirty", ("pattern",), draw=("lines", "phases")),
    "calls": Shape(
        "fsync, fdatasync and msync by way of storing, 4 KiB dirty",
        f"""{PINNED} msync of an observed mapping is done in the program (a look at its own page table, lines,
        a fence) and asks nobody. msync of a packed file's mapping goes through the kernel's page cache: a
        write request and an fsync request. own: a range of the file's own; packed: in the region.""",
        ("call",), _calls, "via", ("place",), draw=("bars", "phases")),
}


def cells(crosses: list[dict], **more) -> list[dict]:
    """All combinations of each of *crosses*, with *more* for axes that are not in one.

    Without what can't be: more dirty than the file has.
    """
    found = []
    for axes in crosses:
        for values in itertools.product(*axes.values()):
            made = cell_of(**{**more, **dict(zip(axes, values, strict=True))})
            if made["dirty"] <= made["mapped"] and made not in found:
                found.append(made)
    return found


def order(cell: dict) -> int:
    """Which cells go first in each round: those with large files last, and those of one file together.

    One large file goes before the next one is made (fsync_cells), which takes seconds. The others are
    shuffled.
    """
    return 0 if cell["mapped"] < BIG else cell["mapped"] * 4 + ("w", "m", "k", "u").index(cell["via"][0])


def family(bench: Bench, name: str, shape: Shape, quick: bool) -> Family:
    """The family *name*; its mounts go when it is over."""
    made = [Cell(one, partial(bench.visit, one, shape.measure), order(one))
            for one in cells(shape.crossed(quick), **QUICK if quick else {})]
    return Family(name, shape.title, " ".join(shape.words.split()), shape.measure, shape.draw, shape.line,
                  made, shape.x, shape.panel, bench.close_rigs)


def cross(bench: Bench, given: dict[str, tuple]) -> Family:
    """The family of all combinations of *given*; x is its longest axis of numbers. ValueError: can't be."""
    varied = [name for name in AXES if len(given.get(name, ())) > 1]
    numbers = [name for name in varied if AXES[name].kind == "number"]
    x = max(numbers, key=lambda name: len(given[name])) if numbers else varied[0] if varied else "dirty"
    panel = ("via",) if "via" in varied and x != "via" else ()
    line = tuple(name for name in varied if name not in (x, *panel))
    shape = Shape(f"fsync by {', '.join(AXES[name].label.rstrip('=') for name in varied) or 'one cell'}",
                  "What was asked for on the command line; docs/laboratory.md says what the axes are.",
                  line or tuple(name for name in ("track", "via") if name != x)[:1], lambda quick: [given],
                  x, panel, "total_ns" if "nt" in given.get("write", ()) else "ns",
                  ("lines",) if AXES[x].kind == "number" else ("bars",))
    made = family(bench, "cross", shape, False)
    unusable = [reason for one in made.cells if (reason := why_not(one.axes))]
    if len(unusable) == len(made.cells):
        raise ValueError(unusable[0] if unusable else "no such cell: more dirty bytes than the file has")
    return made
