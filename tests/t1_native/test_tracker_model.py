# SPDX-License-Identifier: MIT
"""Trackers and write-back against a model (tracker_model.c): random histories of files that share the extents
of a region, with switches; and bugs planted into their C, each of which that model must find."""

import functools
import shutil
import subprocess
from pathlib import Path

import pytest
from test_daxio_threads import BUILDS, ROOT, compiled

NATIVE = ROOT / "daxfs" / "native"
SOURCES = ["tracker.c", "daxio.c", "dirty.c", "file_lock.c", "filemap.c", "flushers.c", "own.c", "trace.c"]
SEEDS, STEPS = range(1, 7), 250
_GONE = "tracker_of(f)->clean(f, pos, end - pos);"
_DRAIN = "\t\tio->ops->drain(io->ops);\n\t\terror = "

# Name: (source, text that stands there once, what stands there instead).
BUGS = {
    "the last unit of a mark is dropped": (
        "tracker.c", "first, ((pos + len - 1) >> shift) - first + 1)",
        "first, ((pos + len - 1) >> shift) - first)"),
    "the first unit of a mark is dropped": (
        "tracker.c", "uint64_t first = pos >> shift;\n\n\tif (!f->dirty)",
        "uint64_t first = (pos >> shift) + 1;\n\n\tif (!f->dirty)"),
    "a shift off by one": (
        "tracker.c", "unsigned shift = f->tracker->shift;\n\tuint64_t first = pos >> shift;",
        "unsigned shift = f->tracker->shift + 1;\n\tuint64_t first = pos >> shift;"),
    "what is clean is rounded outwards": (
        "tracker.c", "first = (pos + mask) >> shift, last = (pos + len) >> shift",
        "first = pos >> shift, last = (pos + len + mask) >> shift"),
    "a run is too short": ("tracker.c", "*len <<= shift;", "*len = *len << shift >> (*len > 1);"),
    "an extent that is active and not counted": (
        "tracker.c", "__atomic_fetch_add(&m->active, 1,", "__atomic_fetch_add(&m->active, n < 64,"),
    "extents begin with what the slot had": (
        "tracker.c", "dirty_arena_take(arena) : NULL;\n\textent_map_clear(m);",
        "dirty_arena_take(arena) : NULL;"),
    "extents that grow are left in DRAM": (
        "tracker.c", "memcpy(words(m), twice.word, ", "memcpy(m->word, twice.word, "),
    "a slot that a range's extents keep": (
        "tracker.c", "\textent_map_end(f->active);\n\tfree(f->active);", "\tfree(f->active);"),
    "a slot that a file keeps at its end": (
        "filemap.c", "\textent_map_end(m->active);\n", ""),
    "the last extent of a mark is not active": (
        "tracker.c", "n <= last / m->pages; n++)",
        "n < last / m->pages || n == first / m->pages; n++)"),
    "extents of the file, and not of the region": (
        "tracker.c", "first = pfn & DAXFS_PFN_MASK;", "first = first & DAXFS_PFN_MASK;"),
    "extents that grow stay": ("tracker.c", "activate(&twice, n / 2);", "activate(&twice, n);"),
    "a walk that skips an extent": ("tracker.c", "n = m->pages - at % m->pages;", "n = m->pages;"),
    "a switch that forgets": ("tracker.c", "err = f->tracker ? hand_over(f, &copy, all) : 0;", "err = 0;"),
    "a switch that forgets the last page": (
        "tracker.c", "((at + len - 1) >> DAXFS_PAGE_SHIFT) - (at >> DAXFS_PAGE_SHIFT) + 1);",
        "((at + len - 1) >> DAXFS_PAGE_SHIFT) - (at >> DAXFS_PAGE_SHIFT));"),
    "a switch from none that trusts it": ("tracker.c", "\tif (all)\n", "\tif (0)\n"),
    "a switch that drops a range's extents": ("tracker.c", "f->active = copy.active;", "f->active = NULL;"),
    "a mark of pages ends at the first extent": (
        "tracker.c", "first < last && !err; first += n) {\n\t\tfilemap_lookup",
        "first < last && !err; first = last) {\n\t\tfilemap_lookup"),
    "clean before the flush": (
        "daxio.c", "\ttotal = tracker_of(f)->extents ?", f"\t{_GONE}\n\ttotal = tracker_of(f)->extents ?"),
    "clean before the drain": ("daxio.c", _DRAIN, f"\t\t{_GONE}\n{_DRAIN}"),
    "no drain": ("daxio.c", _DRAIN, "\t\terror = "),
    "the store before the mark": (
        "daxio.c", "\tint err = tracker_mark(f, pos, n, m->pfn);\n",
        "\tio->ops->store(io->ops, p, source, n);\n\tint err = tracker_mark(f, pos, n, m->pfn);\n"),
    "the rest of the last page is not flushed": (
        "daxio.c", "size = (f->size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1), end, n;", "size = f->size, end, n;"),
    "the last page of a range is not flushed": (
        "daxio.c", "uint64_t size = (f->size + PAGE_SIZE - 1) >> DAXFS_PAGE_SHIFT, n;",
        "uint64_t size = f->size >> DAXFS_PAGE_SHIFT, n;"),
    "extents are cleared by a write-back": (
        "daxio.c", "if (!error && !tracker_of(f)->extents)\n",
        "if (!error && tracker_of(f)->extents && tracker_extents(f))\n"
        "\t\t\textent_map_clear((struct extent_map *)tracker_extents(f));\n"
        "\t\telse if (!error && !tracker_of(f)->extents)\n"),
    "idle extents are flushed": (
        "daxio.c", "if (!extent_is_active(m, n))\n\t\t\tcontinue;", "if (!extent_count(m))\n\t\t\tcontinue;"),
    "the last of the 256 is not flushed": ("daxio.c", "m && n < EXTENTS; n++", "m && n < EXTENTS - 1; n++"),
    "extents of the file alone are flushed": (
        "daxio.c", "total = tracker_of(f)->extents ? flush_extents(&g, f, trace) :",
        "total = tracker_of(f)->extents && f->own ? flush_extents(&g, f, trace) :"),
    "a gap of the region ends an extent": (
        "daxio.c", "while ((first = range_next(g->io->table, first)) < last) {",
        "while (range_next(g->io->table, first) == first && first < last) {"),
    "only the first piece of a run is flushed": (
        "daxio.c", "\t\tput_flush(g, p + IN_PAGE(pos), n);\n\t\ttotal += (int64_t)n;\n",
        "\t\tput_flush(g, p + IN_PAGE(pos), n);\n\t\ttotal += (int64_t)n;\n\t\tbreak;\n"),
    "a chunk of bits that is filled only up to the end of the last one": (
        "dirty.c", "m->count += chunk_set(m->chunk[at], c == c0 ? first & CHUNK_MASK : 0,\n"
        "\t\t\t\t      c == c1 ? last & CHUNK_MASK : CHUNK_MASK);",
        "m->count += chunk_set(m->chunk[at], 0, last & CHUNK_MASK);"),
    "a word of bits that its summary does not know": (
        "dirty.c", "c->summary[w / 64] |= UINT64_C(1) << (w % 64);", "c->summary[w / 64] |= w & 1;"),
}  # fmt: skip


def runs(program: Path, seed: int):
    return subprocess.run([program, str(seed), str(STEPS)], capture_output=True, text=True, check=False,
                          timeout=120)


@pytest.mark.parametrize("build", ["as-built", "memory"])
def test_histories(tmp_path, build):
    program = tmp_path / "model"
    compiled(program, BUILDS[build][0], "tracker_model.c", SOURCES)
    for seed in SEEDS:
        ended = runs(program, seed)
        assert ended.returncode == 0, ended.stderr[-3000:]


@functools.cache
def compiler() -> str:
    return shutil.which("cc") or pytest.skip("no C compiler")


def made(source: Path, target: Path) -> Path:
    subprocess.run([compiler(), "-std=gnu11", "-O1", "-w", "-I", ROOT, "-c", "-o", target, source],
                   check=True)
    return target


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """What is the same for all bugs, compiled once: source name to object."""
    folder = tmp_path_factory.mktemp("objects")
    sources = [Path(__file__).with_name("tracker_model.c"), *(NATIVE / name for name in SOURCES)]
    return {source.name: made(source, folder / f"{source.name}.o") for source in sources}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(objects, tmp_path, bug):
    name, old, new = BUGS[bug]
    text = (NATIVE / name).read_text()
    assert text.count(old) == 1, f"{name}: {old!r} stands there {text.count(old)} times, not once"
    source = tmp_path / name
    source.write_text(text.replace(old, new))
    parts = objects | {name: made(source, tmp_path / "planted.o")}
    program = tmp_path / "model"
    subprocess.run([compiler(), "-o", program, *parts.values(), "-lpthread"], check=True)
    found = next((ended for ended in (runs(program, seed) for seed in SEEDS) if ended.returncode), None)
    assert found and found.returncode == 1, "no seed finds it"
    print(f"\n{bug}: {found.stderr}")
