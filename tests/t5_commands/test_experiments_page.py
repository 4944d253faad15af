#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""docs/experiments/README.md: each of its numbers is what samples.jsonl has, rounded as the page rounds.

Each paragraph is a function here: its sentences with fields for their numbers, and beside them the cell and
the statistic; and its claims without numbers, as conditions. Medians are numpy's over all samples of a cell,
read here without the tools. After a new measurement `python tests/t5_commands/test_experiments_page.py` puts
the data's numbers into the page; then run the test: its claims need not hold any longer, nor its words fit.
"""

import functools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "experiments"
PAGE = FOLDER / "README.md"
PERFORMANCE = FOLDER.parent / "performance.md"
sys.path.append(str(Path(__file__).resolve().parents[1]))

from page_numbers import differences, left_over, mended  # noqa: E402

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
RUNS = ("fsync_sweep", "xfs_io_suite", "s17", "fault_sweep", "s17-policies", "fio_suite")  # as they were made
SIZES = [MIB << n for n in (0, 2, 4, 6, 8, 10, 12)]  # of files, in the family mapped
POLICIES = ("pte", "pmd", "line", "extent", "extent+clear", "none")


@functools.cache
def facts(run):
    return json.loads((FOLDER / run / "run.json").read_text())


@functools.cache
def rows(run):
    lines = (FOLDER / run / "samples.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "samples" in row]


@functools.cache
def cell(run, family, **where):
    """The visits to the one cell that has these values."""
    found = [row for row in rows(run) if row["family"] == family and where.items() <= row["cell"].items()]
    assert len({json.dumps(row["cell"]) for row in found}) == 1, f"{run}, {family}, {where}: not one cell"
    return found


def samples(run, family, measure="ns", **where):
    return np.concatenate([row["samples"][measure] for row in cell(run, family, **where)])


def us(family, measure="ns", **where):
    """Median of fsync_sweep, µs."""
    return float(np.median(samples("fsync_sweep", family, measure, **where))) / 1e3


def phase(names, family, **where):
    """Mean of the phases *names* together in fsync_sweep, µs."""
    visits = cell("fsync_sweep", family, **where)
    weights = [len(row["samples"]["ns"]) for row in visits]
    return float(np.average([sum(row["phases"].get(name, 0) for name in names) for row in visits],
                            weights=weights)) / 1e3


def rate(run, family, **where):
    """Median of s17, MiB/s."""
    return float(np.median(samples(run, family, "mib_s", **where)))


def span(values):
    """The smallest and the largest."""
    values = list(values)
    return min(values), max(values)


def near(a, b, part):
    return abs(a - b) <= part * b


def dirty(track, size=4 * KIB, via="write"):
    return us("dirty", dirty=size, via=via, track=track)


def where_it_ran():
    host = facts("fsync_sweep")["host"]
    loads = [row["load"] for run in RUNS for row in rows(run)]
    same = ("kernel", "cpu", "cpus", "memory_bytes")
    assert all(facts(run)["host"][name] == host[name] for run in RUNS for name in same)
    return [("Linux {:.2}, {:.0} virtual CPUs of an Intel Xeon ({:.1} GHz), {:.1} GiB, nothing else running "
             "(load {:.1} to {:.1}",
             (float(".".join(host["kernel"].split(".")[:2])), host["cpus"],
              float(host["cpu"].split()[-1][:-3]), host["memory_bytes"] / GIB, *span(loads)))]


def s15_or_s16():
    flushing = [dirty(track, 64 * MIB) / 1e3 for track in ("pte", "line", "pmd", "extent")]
    fresh = us("history", dirty=4 * KIB, track="extent", history="fresh")
    clears = {history: us("history", dirty=4 * KIB, track="extent+clear", history=history)
              for history in ("used", "closed")}
    assert fresh < 0.6 * dirty("pmd")  # half of pmd
    return [("The inode's side, by {:1} times.", [dirty("extent") / dirty("pte")]),
            ("takes {:.1} µs with `pte`, {:.1} with nothing to flush at all (`none`), {:.0} with `pmd`, "
             "and {:3} with "
             "`extent`", [dirty(track) for track in ("pte", "none", "pmd", "extent")]),
            ("That {:.1} is the way to the daemon and back, so tracking and flushing a block together "
             "cost {:.1} µs;",
             [dirty("none"), dirty("pte") - dirty("none")]),
            ("`line` flushes 64, and `pte` 4 KiB, which makes little difference ({:.1} and {:.1} µs)",
             [dirty("line", 64), dirty("pte", 64)]),
            ("opened again fsync takes {:.0} µs, where it took {:3} before",
             [clears["closed"], clears["used"]]),
            ("all policies that flush need the same {:.1} to {:.1} ms", span(flushing)),
            ("the same extents cost {:.0} µs, half of `pmd` (`history`)", [fresh]),
            ("What costs {:2} is that **bits are never cleared**", [dirty("extent")])]


def others_and_size():
    def other(track, size):
        return us("other", track=track, other=size)

    def mapped(via, track, size):
        return us("mapped", via=via, track=track, mapped=size)

    others = (64 * KIB, 512 * KIB, 4 * MIB, 32 * MIB, 256 * MIB)
    observed = [{"via": "kernel", "track": "pte", "mapped": size} for size in SIZES]
    flush = [phase(["flush"], "mapped", **one) for one in observed]
    plain = [mapped("mmap", track, 4 * GIB) / 1e3 for track in ("pte", "pmd", "extent")]
    return [("With S15, yes: {:.0} µs with 4 MiB dirty in another file, {:.1} ms with 32 MiB, {:.1} ms "
             "with 256 MiB.",
             [other("extent", 4 * MIB), other("extent", 32 * MIB) / 1e3, other("extent", 256 * MIB) / 1e3]),
            ("With `pte` {:.2} to {:.2} µs in all cases,", span(other("pte", size) for size in others)),
            ("with `pmd` {:.0} to {:.0} (`other`)", span(other("pmd", size) for size in others)),
            ("By write(2), `pte`: {:.1} to {:.1} µs from 1 MiB to 4 GiB,",
             span(mapped("write", "pte", size) for size in SIZES)),
            ("finds no difference); `extent` {:.2} and {:.0} ms (`mapped`)",
             [mapped("write", "extent", size) / 1e3 for size in (MIB, 4 * GIB)]),
            ("every policy that flushes is as bad as S15 ({:.0} to {:.0} ms at 4 GiB)", span(plain)),
            ("an fsync takes {:.2} to {:.2} ms whatever the size:",
             span(mapped("kernel", "pte", size) / 1e3 for size in SIZES)),
            ("{:.0} to {:.0} µs are the flush of 2 MiB ({:.1} in the file of 1 MiB",
             (*span(flush[1:]), flush[0])),
            ("{:.2} to {:.2} ms the way through the daemon's Python half",
             span(phase(["python", "look"], "mapped", **one) / 1e3 for one in observed)),
            ("{:.0} µs with pages of 2 MiB, {:.1} µs with pages of 4 KiB (`calls`)",
             [us("calls", call="msync", via=via) for via in ("kernel", "kernel-pte")])]


def huge_or_small():
    def store(page, state):
        where = {"mode": "kernel", "access": "store", "page": page, "state": state}
        return float(np.median(samples("fault_sweep", "touch", **where))) / 1e3

    def scattered(pages, via):
        return us("faults", pattern="scattered", dirty=pages * 4 * KIB, via=via) / 1e3

    def all_of_it(via):
        return us("mapped", via=via, track="pte", mapped=4 * GIB) / 1e3

    def look(via):
        return phase(["look"], "mapped", via=via, track="pte", mapped=4 * GIB) / 1e3

    return [("takes one fault of {:.1} µs for 2 MiB, in place of 512 of {:.1} (fault_sweep, `touch`, mode "
             "kernel; in a "
             "hole zeroing 2 MiB makes it {:.0})",
             [store(2 * MIB, "written"), store(4 * KIB, "written"), store(2 * MIB, "hole")]),
            ("a flush of 2 MiB: {:.0} µs for each msync, and for 8 scattered pages an fsync of {:.2} ms, "
             "{:.2} with "
             "pages of 4 KiB; at 64 scattered pages it is {:.1} and {:.2} ms",
             [us("calls", call="msync", via="kernel"), scattered(8, "kernel"), scattered(8, "kernel-pte"),
              scattered(64, "kernel"), scattered(64, "kernel-pte")]),
            ("an fsync takes {:.1} ms, {:.1} of them for the look, where huge pages need {:.2} and {:.2} "
             "(`mapped`)",
             [all_of_it("kernel-pte"), look("kernel-pte"), all_of_it("kernel"), look("kernel")])]


def past_the_cache():
    def both(size, **way):
        return us("nt", "total_ns", dirty=size, **way)

    def nt(size, drain="write", threshold=256):
        return both(size, write="nt", drain=drain, nt_threshold=threshold)

    def cached(size):
        return both(size, write="cached")

    sizes = [64 << 2 * n for n in range(10)]
    assert all(nt(size) < cached(size) for size in sizes)
    assert all(near(nt(size), nt(size, "fsync"), 0.03) for size in sizes)
    assert all(near(nt(size), nt(size, threshold=MIB), 0.03) for size in (64, 256, KIB))  # when, not how
    assert nt(4 * KIB) < nt(4 * KIB, threshold=MIB) < cached(4 * KIB)
    assert near(nt(64 * KIB, threshold=MIB), cached(64 * KIB), 0.03)
    return [("take {:.1} µs at 64 bytes with `write=nt`, {:.1} with `write=cached`; {:.0} and {:.0} at "
             "64 KiB, {:.0} and {:.0} at 1 MiB",
             [value for size in (64, 64 * KIB, MIB) for value in (nt(size), cached(size))]),
            ("take {:.1} µs there, those past it {:.1}, those that are left to fsync {:.1}",
             [nt(KIB, threshold=MIB), nt(KIB), cached(KIB)]),
            ("how: {:.1} µs past the cache, {:.1} through it at the write, {:.1} at fsync",
             [nt(4 * KIB), nt(4 * KIB, threshold=MIB), cached(4 * KIB)]),
            ("gives the gain away ({:.0} µs)", [nt(64 * KIB, threshold=MIB)])]


def flushers():
    def took(count, size):
        return us("flushers", flushers=count, dirty=size, track="pte")

    def coarse(count):
        return us("flushers", flushers=count, dirty=MIB, track="extent")

    def part(count, size):
        return took(count, size) / took(1, size)

    assert all(part(2, size) > 0.97 for size in (MIB, 2 * MIB))  # nobody is woken
    assert all(part(4, size) > 0.97 * part(2, size) for size in (16 * MIB, 64 * MIB, GIB))
    return [("They take {:.2} of the time of one for 64 MiB, {:.2} for 1 GiB, {:.2} for 16 MiB, {:.2} for "
             "4 MiB;",
             [part(2, size) for size in (64 * MIB, GIB, 16 * MIB, 4 * MIB)]),
            ("no better than two: {:.2} at 64 MiB, {:.2} at 1 GiB, {:.2} at 16 MiB",
             [part(4, size) for size in (64 * MIB, GIB, 16 * MIB)]),
            ("`extent` takes {:3} µs with one flusher, {:3} with two and {:3} with four, where `pte` needs "
             "{:.0}",
             [*map(coarse, (1, 2, 4)), took(1, MIB)])]


def instruction():
    def by(flush, size):
        return us("flush", flush=flush, dirty=size)

    small = (64, 512, 4 * KIB, 32 * KIB, 256 * KIB)
    assert all(near(by("clflushopt", size), by("clwb", size), 0.06) for size in (*small, 2 * MIB, 16 * MIB))
    slow, fast = by("clflush", 256 * KIB), by("clwb", 256 * KIB)
    return [("takes {:.0} times as long at 256 KiB ({:.2} ms against {:.3})",
             [slow / fast, slow / 1e3, fast / 1e3]),
            ("fsync is {:.1} to {:.1} µs up to 256 KiB dirty and {:.1} at 16 MiB",
             (*span(by("none", size) for size in small), by("none", 16 * MIB)))]


def media():
    def on(medium, track, size=4 * KIB):
        return us("emulate", emulate=medium, track=track, dirty=size)

    def spread(track):
        return span(on(medium, track) for medium in ("dram", "pmem1", "pmem1-single", "pmem2", "cxl"))

    (least, most), (low, high) = spread("pmd"), spread("extent")
    assert most < 1.05 * least and high < 1.05 * low  # what tells the media apart is not seen
    return [("4 KiB take {:.1} to {:.1} µs with `pte`, {:.2} to {:.2} ms with `pmd`, {:.1} to {:.1} ms with "
             "`extent`", [*spread("pte"), least / 1e3, most / 1e3, low / 1e3, high / 1e3]),
            ("{:.0} ns a line of 1 MiB, where this machine itself takes {:.1}",
             [on(medium, "pte", MIB) * 1e3 / (MIB / 64) for medium in ("dram", "none")])]


def row_s17():
    def way(target, **more):
        return rate("s17", "ways", target=target, **more)

    def over(target, **more):
        return rate("s17-policies", "over", target=target, **more)

    nt, cached = ([over(f"track={track}", placement="packed", write=write) for track in POLICIES]
                  for write in ("nt", "cached"))
    ext4, xfs = over("ext4"), over("xfs")
    assert 0.8 * ext4 < min(cached) and max(cached) < 1.2 * xfs  # about what they have
    assert way("ext4") < way("dev", placement="packed") < way("xfs")
    slow = sorted(samples("s17", "ways", "mib_s", target="ext4"))
    assert len(slow) == 5 and slow[1] < 0.4 * slow[2]
    return [("five runs each, two of ext4's far slower: {:3} and {:3})", slow[:2]),
            ("runs at {:3} MiB/s by `uring` and {:3} by `dev`, against {:3} on ext4, {:3} on XFS (both "
             "buffered, in memory of the same kind) and {:3} of a bare tmpfs",
             [way("uring", placement="packed"), way("dev", placement="packed"), way("ext4"), way("xfs"),
              way("tmpfs, 2 MiB")]),
            ("`nt` has {:3} to {:3} MiB/s with all of them; through the cache it is {:3} to {:3}, about "
             "what ext4 ({:3}) "
             "and XFS ({:3}) have", (*span(nt), *span(cached), ext4, xfs)),
            ("files with a range of their own are at {:3}: xfs_io", [way("uring", placement="own")])]


def jobs():
    def fio(job, target, measure="iops", family="durable"):
        return float(np.median(samples("fio_suite", family, measure, job=job, target=target)))

    def policy(track):
        return fio("sync-fsync-1", f"packed:write=cached,track={track}", family="policies")

    def xfs_io(script, target, family):
        return float(np.median(samples("xfs_io_suite", family, job=script, target=target))) / 1e3

    def three(script, family):
        return [xfs_io(script, target, family) for target in ("packed", "ext4", "xfs")]

    def stores(target):
        return fio("mmap-randwrite-4k", target, "mib_s", "mapped")

    ways = ("packed", "packed:transport=dev", "ext4", "xfs")
    nothing = span(xfs_io("nothing", target, "sync") for target in ("packed", "ext4", "xfs"))
    assert nothing[1] - nothing[0] < 2  # µs: what is compared has the same in it
    assert three("falloc-4k", "space")[0] == max(three("falloc-4k", "space"))
    assert three("fpunch-16m", "space")[0] == min(three("fpunch-16m", "space"))
    assert near(stores("own"), stores("tmpfs"), 0.05)
    return [("go {:3} times a second in a packed file by `uring`, {:3} by `dev`, {:3} on ext4 and {:3} on "
             "XFS; with O_DSYNC {:3}, {:3}, {:3} and {:3}",
             [fio(job, target) for job in ("sync-fsync-1", "sync-odsync") for target in ways]),
            ("the policy decides: {:3} with `line`, {:3} `pte`, {:3} `pmd`, {:3} `extent`",
             [policy(track) for track in ("line", "pte", "pmd", "extent")]),
            ("run at {:3} MiB/s, as on the tmpfs below ({:3}), those through the page cache of ext4 at {:3}",
             [stores(target) for target in ("own", "tmpfs", "ext4")]),
            ("flushes all of it, {:3} times a second", [fio("sync-fsync-1", "own")]),
            ("By xfs_io an fsync of 4 KiB takes {:.0} µs, {:.0} on ext4, {:.0} on XFS (xfs_io_suite; {:.0} "
             "of each",
             [*three("fsync-4k", "sync"), xfs_io("nothing", "packed", "sync")]),
            ("fallocate of 4 KiB takes {:.0} µs, against {:.0} and {:.0},", three("falloc-4k", "space")),
            ("But to punch 16 MiB takes {:3}, {:3} and {:3}:", three("fpunch-16m", "space"))]


def python():
    def by(transport, size):
        return us("transport", transport=transport, dirty=size)

    small, large = ([by(transport, size) for transport in ("uring", "dev", "pyfuse3")]
                    for size in (4 * KIB, 16 * MIB))
    return [("By `uring` {:.1} µs, by `dev` {:.0} (the answer wakes a CPU), by pyfuse3 and trio {:.0}; at "
             "16 MiB {:.0}, "
             "{:.0} and {:.0}:", [*small, *large])]


def how_far():
    fresh = us("history", dirty=4 * KIB, track="extent", history="fresh")
    return [("would cost the {:.0} ms there that 1 GiB takes here, not {:.0} µs",
             [us("dirty", dirty=GIB, via="write", track="pte") / 1e3, fresh]),
            ("`pte`'s {:.1} µs are a warm tracker", [dirty("pte")])]


def made_with():
    count = sum(len(values) for run in RUNS for row in rows(run) for values in row["samples"].values())
    visits = {(run, row["family"], json.dumps(row["cell"])): 0 for run in RUNS for row in rows(run)}
    few = dict.fromkeys([key for key in visits if key[0] == "fsync_sweep"
                         and json.loads(key[2])["dirty"] >= 256 * MIB], 0)
    for run in RUNS:
        for row in rows(run):
            key = run, row["family"], json.dumps(row["cell"])
            visits[key] += 1
            if key in few:
                few[key] += len(row["samples"]["ns"])
    assert min(visits.values()) == 2 and max(visits.values()) == 6
    return [("samples: {:.0} (of all measures) in {:.0} visits", [count, sum(visits.values())]),
            ("there are few: {:.0} to {:.0}.", span(few.values()))]


PARAGRAPHS = (where_it_ran, s15_or_s16, others_and_size, huge_or_small, past_the_cache, flushers,
              instruction, media, row_s17, jobs, python, how_far, made_with)
CONDITIONS = (  # numbers that say what was done, and names
    r"(?s)```.*?```", r"\]\([^)]*\)", r"at [0-9a-f]{7}, on", r"20\d\d-\d\d-\d\d", r"\b2015\b",
    r"\bS1[567]\b", r"\bext4\b", r"\bpyfuse3\b", r"\bs17\b", r"\bp99\b", r"\bwrite\(2\)", r"\b\d+ [KMG]iB\b",
    r"a 256th of", r"of 64 stored bytes", r"\(64 bytes go", r"`nt_threshold=1M`",
)


def page():
    return PAGE.read_text()


@pytest.mark.parametrize("paragraph", PARAGRAPHS, ids=lambda paragraph: paragraph.__name__)
def test_the_page_says_what_the_data_say(paragraph):
    wrong = [line for fragment, values in paragraph() for line in differences(page(), fragment, values)]
    assert not wrong, "\n".join(wrong)


def test_no_other_number_is_on_the_page():
    fragments = [fragment for paragraph in PARAGRAPHS for fragment, _ in paragraph()]
    assert left_over(page(), fragments, CONDITIONS) == []


def test_commands_and_commits_are_the_runs():
    said = page()
    told = [facts(run)["command"].partition(" --output")[0] for run in RUNS]
    assert said.split("```")[1].split("\n")[1:-1] == told
    (commit,) = {facts(run)["host"]["commit"] for run in RUNS}
    assert f"at {commit}, on {facts('fsync_sweep')['started'][:10]}" in said and "dirty" not in commit


@pytest.mark.parametrize("run", RUNS)
def test_the_report_was_drawn_from_these_samples(run):
    """By what it says of each run: how many samples there are, and when they were begun."""
    count = sum(len(values) for row in rows(run) for values in row["samples"].values())
    begun, made = (re.escape(f"<dd>{text}</dd>") for text in (
        facts(run)["started"], f"{count} in {len(rows(run))} visits"))
    assert re.search(f"{begun}.*{made}", (FOLDER / "report.html").read_text())  # on one line


def the_table_of_s17():
    """In docs/performance.md."""
    def way(target, **more):
        return rate("s17", "ways", target=target, **more)

    def over(placement, write, tracks=POLICIES):
        return [rate("s17-policies", "over", target=f"track={track}", placement=placement, write=write)
                for track in tracks]

    new = {name: way(name, placement="packed") for name in ("uring", "dev", "pyfuse3")}
    disks = [rate(run, family, target=disk) for run, family in (("s17", "ways"), ("s17-policies", "over"))
             for disk in ("ext4", "xfs")]
    return [("| uring, write=nt, track=pte | {:d} | {:d} | {:d} | {:d} |",
             [new["uring"], way("uring", placement="own"), *over("packed", "nt", ["pte"]),
              *over("own", "nt", ["pte"])]),
            ("| uring, write=nt, other policies | | | {:d} to {:d} | {:d} to {:d} |",
             (*span(over("packed", "nt", POLICIES[1:])), *span(over("own", "nt", POLICIES[1:])))),
            ("| uring, write=cached, all policies | | | {:d} to {:d} | {:d} to {:d} |",
             (*span(over("packed", "cached")), *span(over("own", "cached")))),
            ("| dev; pyfuse3 (write=nt) | {:d}; {:d} | {:d}; - |",
             [new["dev"], new["pyfuse3"], way("dev", placement="own")]),
            ("| ext4; XFS (buffered, loop device) | {:d}; {:d} | | {:d}; {:d} |", disks),
            ("| tmpfs, 4 KiB; 2 MiB | {:d}; {:d} |", [way("tmpfs"), way("tmpfs, 2 MiB")]),
            ("uring is {:.2} times ext4 and {:.2} times XFS, dev {:.2} times ext4.",
             [new["uring"] / disks[0], new["uring"] / disks[1], new["dev"] / disks[0]])]


def test_the_table_of_s17_says_what_the_data_say():
    text = PERFORMANCE.read_text()
    wrong = [line for fragment, values in the_table_of_s17() for line in differences(text, fragment, values)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("fragment, page_, wrong", [
    ("takes {:.1} µs", "it takes 3.9\nµs", []), ("takes {:.1} µs", "it takes\n3.9 µs", []),
    ("takes {:.1} µs", "it takes 3.8 µs", ["the page says 3.8, the data 3.9: 'takes {:.1} µs'"]),
    ("takes {:.1} µs", "nothing", ["0 times on the page: 'takes {:.1} µs'"]),
    ("takes {:.1} µs", "takes 3.9 µs, takes 3.9 µs", ["2 times on the page: 'takes {:.1} µs'"]),
])  # fmt: skip
def test_a_wrong_number_is_found(fragment, page_, wrong):
    assert differences(page_, fragment, [3.86]) == wrong
    assert differences(mended(page_, fragment, [3.86]), fragment, [3.86]) == [] or wrong[0][0] in "02"


def test_rounding_is_the_page_s():
    assert differences("2,320 and 600 and 0.023", "{:3} and {:1} and {:.3}", [2322.6, 595, 0.02282]) == []
    assert left_over("a 3.9 b 64 KiB c 4 d", ["a {:.1} b"], [r"\d+ KiB"]) == ["… … c 4 d"]


if __name__ == "__main__":
    for path, paragraphs in ((PAGE, PARAGRAPHS), (PERFORMANCE, (the_table_of_s17,))):
        text = path.read_text()
        for sentence in (one for paragraph in paragraphs for one in paragraph()):
            text = mended(text, *sentence)
        path.write_text(text)
