# SPDX-License-Identifier: MIT
"""fsck.daxfs as a library: one look at everything, mending, and a look at the result.

The named checks are in `problem.CHECKS`. A look never loops, and never reads where
a number from the media points without checking it. Mending happens in rounds, each
followed by a whole new look; what is reported as mended is what did not come back.
The region must be open in this process alone ("rw" to mend, "cow" to look, "ro" where
a private mapping can't be had). Metadata thread.
"""

from ..errors import UsageError
from . import check_inode, check_own, check_poison, check_super, check_tree, superblock
from . import mend as mending
from .problem import CHECKS, Findings, Problem, Report

__all__ = ["CHECKS", "Problem", "Report", "check_region", "was_unmounted"]

_ROUNDS = 12


def check_region(region, mend=False, progress=None) -> Report:
    """Check *region* and, with *mend*, put right what needs no guess.

    *progress(phase, done, total)* is called on the way. FormatError where there is no
    daxfs region (or one of a newer format), SourceError where its sources are missing,
    swapped, foreign or shrunken, UsageError where the region's mode does not allow it.
    With a "cow" region nothing reaches the sources, the journal's replay included.
    """
    if mend != (region.mode == "rw"):
        raise UsageError("mending needs a region that is open rw, looking one that is open cow or ro")
    progress = progress or (lambda phase, done, total: None)
    found, sb, limit = _look(region, progress)
    replayed, problems = found.replayed, list(found.problems)
    if not mend:
        return Report(problems, [], problems, found.stats, replayed, found.notes)
    acted = [p for p in problems if p.done]
    found, mended = _rounds(region, found, sb, limit, progress, problems, acted)
    left = {p.key for p in found.problems}
    mended = [p for p in mended if p.key not in left]
    report = Report(problems, mended, found.problems, found.stats, replayed, found.notes)
    if not report.left:
        # Only now: as long as something is damaged, what looks like a leftover may be somebody's.
        left = mending.tidy(region, sb, limit, found.leftovers)
        if left:
            report.notes.append(f"{left} ranges that a crash left could not be put right")
        else:
            mending.mark_checked(region)
    return report


def _rounds(region, found, sb, limit, progress, problems: list, acted: list):
    """Mend the lowest rank and look again, until all was tried. Returns (last look, acted)."""
    tried = {p.key for p in acted}
    again = bool(acted)
    for _ in range(_ROUNDS):
        todo = [p for p in found.problems if p.mendable and not p.done and p.key not in tried]
        rank = min((p.rank for p in todo), default=0)
        todo = [p for p in todo if p.rank == rank]
        if not todo and not again:
            break
        if todo and sb is not None:
            tried.update(p.key for p in todo)
            acted += mending.apply(region, sb, limit, todo, progress)
        known = {p.key for p in problems}
        found, sb, limit = _look(region, progress)
        problems += [p for p in found.problems if p.key not in known]
        fixed = [p for p in found.problems if p.done and p.key not in tried]
        tried.update(p.key for p in fixed)
        acted += fixed
        again = bool(fixed)
    return found, acted


def _look(region, progress):
    """One look: (findings, superblock or None, inode limit)."""
    found = Findings()
    try:
        if region.mode != "ro" and superblock.settle(region):
            found.notes.append("a change of the superblock that was cut short is finished")
        sb = check_super.superblocks(region, found)
        if sb is None:
            return found, None, 0
        check_super.labels(region, sb, found)
        if not check_super.journal(region, sb, found):
            return found, None, 0
        limit = check_super.state(region, sb, found)
    except check_super.ReadOnly:
        found.notes.append("the region is mapped read-only; what lies behind this was not looked at")
        return found, None, 0
    if not limit:
        found.notes.append("without an inode table nothing else can be looked at")
        return found, None, 0
    scan = check_inode.Scan(region, sb, limit, found, progress)
    check_inode.check(scan)
    check_tree.check(scan)
    check_own.check(scan)
    check_poison.check(scan)
    return found, sb, limit


def was_unmounted(region) -> bool:
    """True where the region says that it was unmounted and needs no replay: a boot need not check it."""
    return check_super.is_clean(region)
