# SPDX-License-Identifier: MIT
"""Decision and entries against a real kernel's, row by row; each difference is in docs/fault.md."""

from collections import Counter
from pathlib import Path

import kernel_replay as K
import pytest

from daxfs.fault._decision import REASON_NAMES

DOC = Path(__file__).parents[2] / "docs/fault.md"

# Row (counted from 0), file system of the kernel's, whose merit it is, and why.
KEEPS = "the kernel dropped the PMD entry and lost all its marks; here those of the pages that stay are kept"
BEFORE = "XFS writes back what it is about to free or to zero; here the marks of freed pages just go"
REVOKES = "the kernel unmaps the whole file for a change of a part; here what was not freed stays mapped"
HANDS_ON = "sync_file_range and syncfs never reach a FUSE daemon: nothing was flushed and protected before"
DIFFERENCES = [
    (96, "xfs", "not ours", "XFS writes back the last page when the file grows; here fsync does"),
    (110, "both", "better", KEEPS),
    (113, "xfs", "better", BEFORE),
    (115, "xfs", "not ours", "XFS writes back 2 MiB to free 4 KiB of it; here fsync flushes the rest"),
    (116, "both", "better", "the marks that are kept are PTE entries, found before the short hole; same PTE"),
    (122, "ext4", "better", KEEPS),
    (122, "xfs", "not ours", "XFS flushed all but one of them at the punch (row 115)"),
    (125, "both", "better", REVOKES),
    (128, "xfs", "better", BEFORE),
    (150, "both", "not ours", HANDS_ON),
    (152, "both", "not ours", HANDS_ON),
    (221, "both", "better", REVOKES),
]
# How many rows of each of the two file systems are left out, and why (kernel_replay.LEFT_OUT).
LEFT_OUT = dict(zip([why for why, _ in K.LEFT_OUT], (17, 7, 2, 3, 3), strict=True))


@pytest.fixture(scope="module")
def replayed():
    return list(K.replay_all())


def differs(told, want):
    """Not the same, where the kernel's row says anything."""
    return any(w is not None and t != w for t, w in zip(told, want, strict=True))


def test_every_row_is_the_kernels_or_a_known_difference(replayed):
    want = {(row, fs) for row, one, _, _ in DIFFERENCES for fs in ("xfs", "ext4") if one in (fs, "both")}
    got = {(n, fs): (told, K.kernels(K.ROWS[n], fs)) for n, fs, told in replayed if told is not None}
    found = {key for key, (told, said) in got.items() if differs(told, said)}
    for key in sorted(found ^ want):
        print(key, K.ROWS[key[0]]["case"], "|", K.ROWS[key[0]]["step"], *got.get(key, ()), sep="\n   ")
    assert found == want
    assert len(got) == 380


def test_rows_that_are_left_out_are_no_faults(replayed):
    assert len(replayed) == 2 * len(K.ROWS) == 444
    for fs in ("xfs", "ext4"):
        out = [n for n, one, told in replayed if told is None and one == fs]
        assert Counter(K.left_out(K.ROWS[n]["step"]) for n in out) == LEFT_OUT
        for n in out:
            words, _, _, _ = K.kernels(K.ROWS[n], fs)
            assert not words or K.left_out(K.ROWS[n]["step"]).startswith("calls that FUSE does not hand on")


def test_the_kernels_rows_reach_what_they_can(replayed):
    """Every reason but those that its machine did not have, every kind of fault, flushes of both sizes."""
    reasons = {r for _, _, told in replayed if told for r in told[1]}
    words = {w for _, _, told in replayed if told for w in told[0]}
    assert set(REASON_NAMES) - reasons == {"", "pmd-off", "page-table", "poison", "no-huge-zero-page"}
    for part in ("PMD(R", "PMD(W", "PTE(R", "PTE(W", "PTE(MKW", "=SIGBUS", "=MAJOR", "=LOCKED", "=NEEDDSYNC",
                 "=MAJOR|NEEDDSYNC", "512p,2 mkclean", ",1p,", "zeroPMD", "zeroPTE", "unmap(0,512)",
                 "unmap(0,1)", "del("):  # fmt: skip
        assert any(part in w for w in words), part


def table(replayed):
    """The lines of the table of differences in docs/fault.md."""
    told = {(n, fs): one for n, fs, one in replayed}
    for n, one, whose, why in DIFFERENCES:
        fs = "ext4" if one == "both" else one
        row = K.ROWS[n]
        kernel = {f: K.brief(*K.kernels(row, f)[:2]) for f in ("xfs", "ext4")}
        ours = K.brief(*told[n, fs][:2])
        text = kernel[fs]
        if one == "both" and kernel["xfs"] != text:
            text = f"xfs {kernel['xfs']}; ext4 {text}"
        case = row["case"].split()[0]
        yield f"| {n} | {case} {row['step']} | {one} | {text} | {ours} | {whose} | {why} |"


def test_the_document_has_the_same_table(replayed):
    there = [line for line in DOC.read_text().splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert there == list(table(replayed))


def test_the_document_names_the_reasons_in_order():
    text = DOC.read_text()
    decision = text.partition("## The decision")[2].partition("\n## ")[0]
    there = [line.split("`")[1] for line in decision.splitlines() if line.startswith("| `")]
    assert there == [name for name in REASON_NAMES if name]
    for why, count in LEFT_OUT.items():
        assert f"- {count}: {why}\n" in text
