# SPDX-License-Identifier: MIT
"""The fault decision: a literal table, the order of reasons, every combination, and the counts."""

import ctypes
import itertools
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from datakit import PAGE, filemap

from daxfs._iomap import HOLE, MAPPED, UNWRITTEN
from daxfs.fault._decision import KIND_NAMES, REASON_NAMES, RESULT_NAMES, CachedFaults, decide

PAGES = 2048  # of the file: four PMDs
AT = 517  # in the second one
EXTENTS = {
    "mapped": (MAPPED, 512, 1024, 5120),
    "unwritten": (UNWRITTEN, 512, 1024, 5120),
    "hole": (HOLE, 0, PAGES, 0),
}


def shifted(extent):
    return (*extent[:3], extent[3] + 1) if extent[0] != HOLE else extent


def cut(extent):
    """It ends at page 1000."""
    return (*extent[:2], 1000 - extent[1], extent[3])


def late(extent):
    """It begins at page 515, its frame still of the right colour."""
    return (extent[0], 515, extent[2], extent[3] + 3 if extent[0] != HOLE else 0)


# What each condition changes: the extent, or arguments of decide.
CONDITIONS = {
    "aligned": {},
    "misaligned": {"extent": shifted},
    "colour differs": {"address": AT + 1},
    "mapping starts inside": {"vma_start": 515},
    "mapping ends inside": {"vma_end": 1000},
    "EOF inside": {"size": 600 * PAGE},
    "EOF in the last page": {"size": 1023 * PAGE + 1},
    "PTE entry": {"pte_entry": True},
    "short": {"extent": cut},
    "begins late": {"extent": late},
    "no zero page": {"zero_page": False},
    "PMD off": {"pmd": False},
    "page table": {"table": True},
    "poison in the PMD": {"poison_pmd": True},
    "poison": {"poison": True, "poison_pmd": True},
    "sync": {"sync": True},
}

# Columns: mapped, unwritten, hole. "+" PMD, "-" PTE and why; "!" MAJOR, "?" NEEDDSYNC, both "!?", "x" SIGBUS.
TABLE = """
aligned               | read    | +                    | +                    | +
aligned               | write   | +                    | +                    | +
aligned               | cow     | - cow                | - cow                | - cow
aligned               | mkwrite | -                    | -                    | - !
misaligned            | read    | - unaligned-extent   | +                    | +
misaligned            | write   | - unaligned-extent   | - unaligned-extent   | +
misaligned            | cow     | - cow                | - cow                | - cow
misaligned            | mkwrite | -                    | -                    | - !
colour differs        | read    | - colour             | - colour             | - colour
colour differs        | write   | - colour             | - colour             | - colour !
colour differs        | cow     | - colour             | - colour             | - colour
colour differs        | mkwrite | -                    | -                    | - !
mapping starts inside | read    | - before-mapping     | - before-mapping     | - before-mapping
mapping starts inside | write   | - before-mapping     | - before-mapping     | - before-mapping !
mapping starts inside | cow     | - cow                | - cow                | - cow
mapping starts inside | mkwrite | -                    | -                    | - !
mapping ends inside   | read    | - after-mapping      | - after-mapping      | - after-mapping
mapping ends inside   | write   | - after-mapping      | - after-mapping      | - after-mapping !
mapping ends inside   | cow     | - cow                | - cow                | - cow
mapping ends inside   | mkwrite | -                    | -                    | - !
EOF inside            | read    | - end-of-file        | - end-of-file        | - end-of-file
EOF inside            | write   | - end-of-file        | - end-of-file        | - end-of-file !
EOF inside            | cow     | - cow                | - cow                | - cow
EOF inside            | mkwrite | -                    | -                    | - !
EOF in the last page  | read    | +                    | +                    | +
EOF in the last page  | write   | +                    | +                    | +
EOF in the last page  | cow     | - cow                | - cow                | - cow
EOF in the last page  | mkwrite | -                    | -                    | - !
PTE entry             | read    | - pte-entry          | - pte-entry          | - pte-entry
PTE entry             | write   | - pte-entry          | - pte-entry          | - pte-entry !
PTE entry             | cow     | - cow                | - cow                | - cow
PTE entry             | mkwrite | -                    | -                    | - !
short                 | read    | - short-extent       | - short-extent       | - short-extent
short                 | write   | - short-extent       | - short-extent       | - short-extent !
short                 | cow     | - cow                | - cow                | - cow
short                 | mkwrite | -                    | -                    | - !
begins late           | read    | - short-extent       | - short-extent       | - short-extent
begins late           | write   | - short-extent       | - short-extent       | - short-extent !
begins late           | cow     | - cow                | - cow                | - cow
begins late           | mkwrite | -                    | -                    | - !
no zero page          | read    | +                    | - no-huge-zero-page  | - no-huge-zero-page
no zero page          | write   | +                    | +                    | +
no zero page          | cow     | - cow                | - cow                | - cow
no zero page          | mkwrite | -                    | -                    | - !
PMD off               | read    | - pmd-off            | - pmd-off            | - pmd-off
PMD off               | write   | - pmd-off            | - pmd-off            | - pmd-off !
PMD off               | cow     | - pmd-off            | - pmd-off            | - pmd-off
PMD off               | mkwrite | -                    | -                    | - !
page table            | read    | - page-table         | - page-table         | - page-table
page table            | write   | - page-table         | - page-table         | - page-table !
page table            | cow     | - page-table         | - page-table         | - page-table
page table            | mkwrite | -                    | -                    | - !
poison in the PMD     | read    | - poison             | +                    | +
poison in the PMD     | write   | - poison             | - poison             | +
poison in the PMD     | cow     | - cow                | - cow                | - cow
poison in the PMD     | mkwrite | -                    | -                    | - !
poison                | read    | - poison x           | +                    | +
poison                | write   | - poison x           | - poison x           | +
poison                | cow     | - cow x              | - cow                | - cow
poison                | mkwrite | - x                  | - x                  | - !
sync                  | read    | +                    | +                    | +
sync                  | write   | +                    | + ?                  | + ?
sync                  | cow     | - cow                | - cow                | - cow
sync                  | mkwrite | -                    | - ?                  | - !?
"""

ROWS = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]


def run(kind, state, *conditions, pgoff=AT):
    """decide with all of these conditions at once."""
    extent = EXTENTS[state]
    how = {"size": PAGES * PAGE, "address": pgoff, "vma_end": PAGES}
    for name in conditions:
        change = dict(CONDITIONS[name])
        extent = change.pop("extent", lambda e: e)(extent)
        how.update(change)
    return decide(kind, pgoff, extent, **how)


MARKS = {"!": "MAJOR", "?": "NEEDDSYNC", "!?": "MAJOR|NEEDDSYNC", "x": "SIGBUS"}


def expected(kind, cell):
    order, *rest = cell.split()
    result = MARKS[rest.pop()] if rest and rest[-1] in MARKS else "LOCKED" if kind == "cow" else "NOPAGE"
    return (9 if order == "+" else 0), result, (rest[0] if rest else "")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_table(row):
    for state, cell in zip(EXTENTS, row[2:], strict=True):
        assert tuple(run(row[1], state, row[0])) == expected(row[1], cell), state


def test_table_is_complete():
    assert [(r[0], r[1]) for r in ROWS] == list(itertools.product(CONDITIONS, KIND_NAMES))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_beyond_the_end_of_file_is_sigbus_whatever_else(condition):
    """The page behind the last one; the last one, of which one byte is in the file, is not."""
    for kind, (state, extent) in itertools.product(KIND_NAMES, EXTENTS.items()):
        how = {k: v for k, v in CONDITIONS[condition].items() if k not in ("extent", "size", "address")}
        how["vma_end"] = PAGES
        assert tuple(decide(kind, AT, extent, size=AT * PAGE, **how)) == (0, "SIGBUS", ""), state
        how.pop("poison", None)  # which is SIGBUS in the file, too
        assert decide(kind, AT, extent, size=AT * PAGE + 1, **how).result != "SIGBUS"
        assert decide(kind, 0, extent, size=0, **how).result == "SIGBUS"


# Each reason with a condition that brings it about, in the order in which they must be found.
ORDER = [
    ("pmd-off", "PMD off"),
    ("page-table", "page table"),
    ("colour", "colour differs"),
    ("cow", None),
    ("before-mapping", "mapping starts inside"),
    ("after-mapping", "mapping ends inside"),
    ("end-of-file", "EOF inside"),
    ("pte-entry", "PTE entry"),
    ("short-extent", "short"),
    ("poison", "poison in the PMD"),
    ("unaligned-extent", "misaligned"),
]


@pytest.mark.parametrize("n", range(len(ORDER)))
def test_the_first_reason_in_the_kernels_order_is_named(n):
    name, condition = ORDER[n]
    for other, second in ORDER[n:]:
        kind = "cow" if None in (condition, second) else "write"
        got = run(kind, "mapped", *[c for c in (condition, second) if c])
        assert (got.order, got.reason) == (0, name), other
    everything = [c for _, c in ORDER[n:] if c]
    kind = "cow" if n <= 3 else "read"
    assert run(kind, "mapped", *everything).reason == name


def test_short_hole_comes_before_the_missing_zero_page():
    assert run("read", "hole", "no zero page", "short").reason == "short-extent"
    assert run("read", "unwritten", "no zero page", "misaligned").reason == "no-huge-zero-page"


def test_every_reason_has_a_row():
    named = {expected(row[1], cell)[2] for row in ROWS for cell in row[2:]}
    assert named == set(REASON_NAMES)


def test_exact_fit_of_mapping_extent_and_file():
    extent = (MAPPED, 512, 512, 1024)
    for pgoff in (512, 700, 1023):
        got = decide("write", pgoff, extent, size=1024 * PAGE, address=pgoff, vma_start=512, vma_end=1024)
        assert got.order == 9


# -- every combination ----------------------------------------------------------------------

# For each kind of variation its values; a test runs all of them together. Page AT is in [512, 1024).
SPACE = {
    "kind": KIND_NAMES,
    "state": ("mapped", "unwritten", "hole", "beyond"),
    "frame": (0, 1, 511),  # of page 512, modulo 512
    "colour": (0, 1, -3),  # address less file offset
    "vma": ((0, 4096), (512, 1024), (513, 4096), (AT, AT + 1), (0, 1023)),  # in pages of the file
    "end": (1024, 1023, AT + 1, 4096),  # pages of the file
    "extent": ((512, 1024), (0, 4096), (512, 1023), (513, 1024), (AT, AT + 1)),
    "pte_entry": (False, True),
    "pmd": (True, False),
    "zero_page": (True, False),
    "sync": (False, True),
    "table": (False, True),
    "poison": (None, "elsewhere", "page"),
}

# The rules, in the order of the kernel's code: a name, and when it holds (c: a combination, as a namespace).
RULES = [
    ("pmd-off", lambda c: not c.pmd),
    ("page-table", lambda c: c.table),
    ("colour", lambda c: c.colour % 512 != 0),
    ("cow", lambda c: c.kind == "cow"),
    ("before-mapping", lambda c: c.vma[0] > 512),
    ("after-mapping", lambda c: c.vma[1] < 1024),
    ("end-of-file", lambda c: c.end < 1024),
    ("pte-entry", lambda c: c.pte_entry),
    ("short-extent", lambda c: not (c.extent[0] <= 512 and 1024 <= c.extent[1])),
    ("poison", lambda c: c.poison and c.frame_counts),
    ("unaligned-extent", lambda c: c.frame and c.frame_counts),
    ("no-huge-zero-page", lambda c: not c.zero_page and c.kind == "read" and c.state != "mapped"),
]


class Case:
    """One combination, as the oracle sees it."""

    def __init__(self, values):
        self.__dict__.update(zip(SPACE, values, strict=True))
        self.writes = self.kind in ("write", "mkwrite")
        self.frame_counts = self.state == "mapped" or (self.state == "unwritten" and self.writes)

    def want(self):
        if self.state == "beyond":
            return 0, "SIGBUS", ""
        first = next((name for name, holds in RULES if holds(self)), "")
        reason, order = ("", 0) if self.kind == "mkwrite" else (first, 0 if first else 9)
        if self.poison == "page" and self.frame_counts:
            return order, "SIGBUS", reason
        if self.kind == "cow":
            return order, "LOCKED", reason
        flags = ["MAJOR"] if self.writes and self.state == "hole" and order == 0 else []
        flags += ["NEEDDSYNC"] if self.writes and self.sync and self.state != "mapped" else []
        return order, "|".join(flags) or "NOPAGE", reason

    def got(self):
        first, end = self.extent
        kind = {"mapped": MAPPED, "unwritten": UNWRITTEN}.get(self.state, HOLE)
        away = 1 << 20  # of the addresses; a multiple of 512
        return tuple(decide(
            self.kind, AT, (kind, first, end - first, 51200 + self.frame + first - 512),
            size=AT * PAGE if self.state == "beyond" else self.end * PAGE, address=away + AT + self.colour,
            vma_start=away + self.vma[0] + self.colour, vma_end=away + self.vma[1] + self.colour,
            pte_entry=self.pte_entry, pmd=self.pmd, zero_page=self.zero_page, sync=self.sync,
            table=self.table, poison=self.poison == "page", poison_pmd=self.poison is not None,
        ))  # fmt: skip


def all_cases():
    return map(Case, itertools.product(*SPACE.values()))


@pytest.mark.long
def test_every_combination_is_what_the_rules_say():
    """1,382,400 of them; what came out must be every reason, and every result that a decision can have."""
    seen, results = dict.fromkeys(REASON_NAMES, 0), dict.fromkeys(RESULT_NAMES, 0)
    for case in all_cases():
        want, got = case.want(), case.got()
        assert got == want, vars(case)
        seen[got[2]] += 1
        results[got[1]] += 1
    assert all(seen.values()), seen
    assert [name for name, n in results.items() if not n] == ["FALLBACK", "OOM"]  # the handler's (fault.h)


def header_names(prefix):
    """Names of an enum of native/fault.h, in order, without the prefix and what only counts."""
    text = (Path(__file__).parents[2] / "daxfs/native/fault.h").read_text()
    body = re.search(rf"enum {prefix} {{(.*?)}};", text, re.DOTALL)[1]
    names = re.findall(r"\bFAULT_([A-Z_]+)\b(?=[,\s])", re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL))
    return names[:-1]


def test_the_words_are_in_the_order_of_the_header():
    assert tuple(name.lower() for name in header_names("fault_kind")) == KIND_NAMES
    assert [*header_names("fault_result")[:6], "MAJOR", "MAJOR|NEEDDSYNC"] == list(RESULT_NAMES)
    short = {"R_START": "before-mapping", "R_END": "after-mapping", "R_EOF": "end-of-file",
             "R_TABLE": "page-table", "R_SHORT": "short-extent", "R_UNALIGNED": "unaligned-extent",
             "R_NO_ZERO_PAGE": "no-huge-zero-page", "NO_REASON": ""}  # fmt: skip
    names = header_names("fault_reason")
    assert tuple(short.get(n, n.removeprefix("R_").lower().replace("_", "-")) for n in names) == REASON_NAMES


def test_sizes_near_2_64_do_not_wrap():
    for size in (2**64 - 1, 2**64 - PAGE, 2**64 - PAGE + 1):
        got = decide("write", AT, (MAPPED, 512, 512, 512), size=size, vma_end=4096)
        assert tuple(got) == (9, "NOPAGE", "")


# -- counting -------------------------------------------------------------------------------

LAYOUT = [(0, 600, 1024, MAPPED), (600, 300, 3001, UNWRITTEN), (1536, 512, 4096, MAPPED)]


def counts(faults):
    out = {}
    for row in faults.snapshot()["faults"]:
        out[row["kind"], row["size"], row["result"], row["reason"]] = row["count"]
    return out


def test_requests_are_counted_once_for_each_piece():
    f, faults = filemap(2048 * PAGE, LAYOUT), CachedFaults()
    faults.request(f, 0, 512 * PAGE, False)
    assert counts(faults) == {("read", "PMD", "NOPAGE", ""): 1}
    faults.request(f, 5 * PAGE + 1, 10, True)
    faults.request(f, 2000 * PAGE, PAGE, True)
    assert counts(faults)["write", "PMD", "NOPAGE", ""] == 2
    # 512..599 mapped, 600..899 unwritten, 900..1535 a hole, of which 1024..1535 is a whole 2 MiB.
    faults.request(f, 512 * PAGE, 1024 * PAGE, True)
    got = counts(faults)
    assert got["write", "PTE", "NOPAGE", "short-extent"] == 2
    assert got["write", "PTE", "MAJOR", "short-extent"] == 1
    assert got["write", "PMD", "NOPAGE", ""] == 3
    assert faults.snapshot()["pages"] == {"read": 512, "write": 1026, "cow": 0, "mkwrite": 0}
    assert sum(got.values()) == 7


def test_a_write_that_grows_the_file_is_inside_it_and_a_read_beyond_is_sigbus():
    f, faults = filemap(0, []), CachedFaults()
    faults.request(f, 0, 100, True)
    faults.request(f, 0, 100, False)
    faults.request(f, 0, 0, False)
    assert counts(faults) == {("write", "PTE", "MAJOR", "end-of-file"): 1, ("read", "PTE", "SIGBUS", ""): 1}


def test_without_pmd_every_fault_is_a_pte():
    f, faults = filemap(2048 * PAGE, LAYOUT), CachedFaults(pmd=False)
    faults.request(f, 0, 512 * PAGE, False)
    assert counts(faults) == {("read", "PTE", "NOPAGE", "pmd-off"): 1}


def test_what_is_no_page_of_a_file_is_not_counted():
    """A request of the kernel may name any 64-bit position; no sum wraps."""
    f, faults = filemap(0, []), CachedFaults()
    for pos, size in ((1 << 44, 1), (1 << 63, PAGE), ((1 << 64) - 1, 1), ((1 << 64) - PAGE, (1 << 64) - 1)):
        faults.request(f, pos, size, True)
    assert faults.snapshot() == {"pages": dict.fromkeys(KIND_NAMES, 0), "faults": []}
    faults.request(f, (1 << 44) - PAGE, (1 << 64) - 1, True)
    assert faults.snapshot()["pages"]["write"] == 1


def struct_of(f) -> int:
    """Address of the struct filemap in *f*: its fourth word is the size."""
    size, f.size = f.size, 0x1234567890ABC
    words = (ctypes.c_uint64 * 32).from_address(id(f))
    place = ctypes.addressof(words) + 8 * (list(words).index(f.size) - 3)
    f.size = size
    return place


def test_native_threads_count_through_the_hook_without_the_gil_and_lose_nothing():
    f, faults = filemap(2048 * PAGE, LAYOUT), CachedFaults()
    function, context = faults.hook
    word = ctypes.c_uint64
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, word, word, ctypes.c_int)(function)
    place, rounds = struct_of(f), 4000

    def work():
        for _ in range(rounds):
            call(context, place, 512 * PAGE, 1024 * PAGE, 1)  # ctypes gives the GIL away around it
            call(context, place, 0, PAGE, 0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one = CachedFaults()
    one.request(f, 512 * PAGE, 1024 * PAGE, True)
    one.request(f, 0, PAGE, False)
    assert counts(faults) == {row: count * 4 * rounds for row, count in counts(one).items()}
    assert faults.snapshot()["pages"] == {
        "read": 4 * rounds, "write": 4 * rounds * 1024, "cow": 0, "mkwrite": 0,
    }  # fmt: skip


def test_request_gives_the_gil_away_while_it_waits_for_the_lock():
    """Another thread holds the inode's lock and needs the GIL to let go of it."""
    script = textwrap.dedent("""
        import threading, time
        from daxfs._iomap import FileMap
        from daxfs.fault._decision import CachedFaults
        f, taken = FileMap(), threading.Event()
        f.size = 4096
        def hold():
            f.lock()
            taken.set()
            time.sleep(0.2)
            f.unlock()
        thread = threading.Thread(target=hold)
        thread.start()
        taken.wait()
        CachedFaults().request(f, 0, 4096, False)
        thread.join()
        print("done")
    """)
    ended = subprocess.run(
        [sys.executable, "-P", "-c", script], check=False, capture_output=True, timeout=20, text=True
    )
    assert ended.stdout == "done\n", ended.stderr
