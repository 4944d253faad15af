# SPDX-License-Identifier: MIT
"""The fault decision: a literal table, the order of reasons, what a real kernel decided, and the counts."""

import ctypes
import itertools
import json
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from datakit import PAGE, filemap

from daxfs._iomap import HOLE, MAPPED, UNWRITTEN
from daxfs.fault._decision import KIND_NAMES, REASON_NAMES, CachedFaults, decide

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
    "sync": {"sync": True},
}

# Columns: mapped, unwritten, hole. "+" PMD, "-" PTE and why; "!" MAJOR, "?" NEEDDSYNC.
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
sync                  | read    | +                    | +                    | +
sync                  | write   | +                    | + ?                  | + ?
sync                  | cow     | - cow                | - cow                | - cow
sync                  | mkwrite | -                    | - ?                  | - ?
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


def expected(cell):
    order, *rest = cell.split()
    result = "NOPAGE"
    if rest and rest[-1] in "!?":
        result = {"!": "MAJOR", "?": "NEEDDSYNC"}[rest.pop()]
    return (9 if order == "+" else 0), result, (rest[0] if rest else "")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_table(row):
    for state, cell in zip(EXTENTS, row[2:], strict=True):
        assert tuple(run(row[1], state, row[0])) == expected(cell), state


def test_table_is_complete():
    assert [(r[0], r[1]) for r in ROWS] == list(itertools.product(CONDITIONS, KIND_NAMES))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_beyond_the_end_of_file_is_sigbus_whatever_else(condition):
    """The page behind the last one; the last one, of which one byte is in the file, is not."""
    for kind, (state, extent) in itertools.product(KIND_NAMES, EXTENTS.items()):
        how = {k: v for k, v in CONDITIONS[condition].items() if k not in ("extent", "size", "address")}
        how["vma_end"] = PAGES
        assert tuple(decide(kind, AT, extent, size=AT * PAGE, **how)) == (0, "SIGBUS", ""), state
        assert decide(kind, AT, extent, size=AT * PAGE + 1, **how).result != "SIGBUS"
        assert decide(kind, 0, extent, size=0, **how).result == "SIGBUS"


# Each reason with a condition that brings it about, in the order in which they must be found.
ORDER = [
    ("pmd-off", "PMD off"),
    ("colour", "colour differs"),
    ("cow", None),
    ("before-mapping", "mapping starts inside"),
    ("after-mapping", "mapping ends inside"),
    ("end-of-file", "EOF inside"),
    ("pte-entry", "PTE entry"),
    ("short-extent", "short"),
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
    kind = "cow" if n <= 2 else "read"
    assert run(kind, "mapped", *everything).reason == name


def test_short_hole_comes_before_the_missing_zero_page():
    assert run("read", "hole", "no zero page", "short").reason == "short-extent"
    assert run("read", "unwritten", "no zero page", "misaligned").reason == "no-huge-zero-page"


def test_every_reason_has_a_row():
    named = {expected(cell)[2] for row in ROWS for cell in row[2:]}
    assert named == set(REASON_NAMES)


def test_exact_fit_of_mapping_extent_and_file():
    extent = (MAPPED, 512, 512, 1024)
    for pgoff in (512, 700, 1023):
        got = decide("write", pgoff, extent, size=1024 * PAGE, address=pgoff, vma_start=512, vma_end=1024)
        assert got.order == 9


# -- what the kernel did --------------------------------------------------------------------

KERNEL = json.loads(Path(__file__).with_name("kernel_faults.json").read_text())
TOKEN = re.compile(r"(PMD|PTE)\((R|W|MKW),pg0x([0-9a-f]+)\)=([A-Z_|]+)")
EXTENT = re.compile(r"(\d+)K\+(\d+)K@(\d+)K[=!](u?)")
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
# Facts that the names of the cases state.
SIZES = {"c1": 1 << 20, "c2": 1 << 20, "c3": (2 << 20) + 4096, "c4": 2 << 20, "c5": (2 << 20) - 1, "g1": 4196}
MAPPINGS = {"c1": 512, "c2": 256, "d2": 256, "g1": 512}  # pages
ADDRESSES = {"d1": 1, "d3": -1}  # address less file offset, in pages
# What can't be replayed without guessing.
LEFT_OUT = {
    "b4": "size unknown; ext4's extents were read before the block was allocated",
    "c6": "the size changes on the way",
    "f1": "the list of extents is cut",
    "g2": "the size changes on the way",
    "g4": "length of the mapping unknown",
    "d7": "place of the split unknown",
}
# Results that daxfs gives another name, on purpose.
DELIBERATE = {
    "DONE_COW": ("NOPAGE", "the copy is made and mapped by the handler: one result for `is mapped now`"),
    "MAJOR|NEEDDSYNC": ("NEEDDSYNC", "a result is one word; what the caller has to do comes first"),
    "MAJOR|NOPAGE": ("MAJOR", "the same, without the part that says nothing more"),
}


def extents_of(text):
    return [
        (UNWRITTEN if u else MAPPED, int(at) // 4, int(length) // 4, int(phys) // 4)
        for at, length, phys, u in EXTENT.findall(text)
    ]


def piece(extents, pgoff):
    """The extent or the whole hole that holds *pgoff*."""
    low, high = 0, 1 << 32
    for extent in extents:
        end = extent[1] + extent[2]
        if extent[1] <= pgoff < end:
            return extent
        if end <= pgoff:
            low = end
        else:
            high = min(high, extent[1])
    return HOLE, low, high - low, 0


def size_of(case, rows):
    """Bytes of the file: from the case's name, or where its extents end, if that never moves; else None."""
    if case.split()[0] in SIZES:
        return SIZES[case.split()[0]]
    named = re.search(r"(?:hole|written|fallocate)(\d+)M", case)
    if named:
        return int(named[1]) << 20
    ends = {max((e[1] + e[2] for e in extents_of(row[4])), default=None) for row in rows if row[0] == case}
    end = ends.pop()
    return None if ends or end is None else end * PAGE


def replay(row):
    """(decision of daxfs, what the kernel said) or None where the row states no single, plain fault."""
    case, step, _, text, extents, reasons = row
    name = case.split()[0]
    tokens = TOKEN.findall(text)
    if len({t[2] for t in tokens}) != 1 or "rw(" in text or (name in LEFT_OUT and tokens[0][0] == "PMD"):
        return None
    tried, (_, access, page, result) = tokens[0][0] == "PMD", tokens[-1]
    pgoff = int(page, 16)
    size = size_of(case, [r for r in KERNEL["rows"] if r[2] == row[2]])
    if size is None or name in LEFT_OUT:
        if tried or result == "SIGBUS":
            return None
        size = (pgoff + 1) * PAGE  # that much is certain, and a PTE asks for no more
    kind = {"R": "read", "W": "write", "MKW": "mkwrite"}[access]
    if "PRIVATE" in case and kind == "write":
        kind = "cow"
    address = pgoff + ADDRESSES.get(name, 0)
    got = decide(
        kind, pgoff, piece(extents_of(extents), pgoff), size=size, address=address,
        vma_end=MAPPINGS.get(name, 1 << 20), pmd=tried, sync="MAP_SYNC" in case,
        pte_entry=any(r.startswith("PTE-sized") for r in reasons),
    )  # fmt: skip
    fell = [REASON_OF[key] for r in reasons for key in REASON_OF if r.startswith(key)]
    reason = fell[0] if fell else ("" if tried or kind == "mkwrite" or result == "SIGBUS" else "pmd-off")
    order = 9 if tokens[-1][0] == "PMD" and result != "SIGBUS" else 0
    return tuple(got), (order, DELIBERATE.get(result, (result,))[0], reason), (step, text)


def test_decisions_of_a_real_kernel():
    done = 0
    for row in KERNEL["rows"]:
        answer = replay(row)
        if answer is None:
            continue
        got, want, _ = answer
        assert got == want, row
        done += 1
    print(f"replayed {done} of {len(KERNEL['rows'])} rows of kernel faults")
    assert done >= 200


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
