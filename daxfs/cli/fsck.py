# SPDX-License-Identifier: MIT
"""fsck.daxfs: check a region and mend what needs no guess.

Limits: the checks and the mending are meta/check.py; here is who is asked, what is said, and the exit
status. Without leave to mend the sources are mapped privately: no byte of them changes.
"""

import errno
import json
import sys

import click

import daxfs
from daxfs.cli import common
from daxfs.errors import UsageError
from daxfs.meta.check import CHECKS, Report, check_region, was_unmounted
from daxfs.region import Region

PROG = "fsck.daxfs"
CLEAN, MENDED, LEFT, FAILED, USAGE, CANCELLED = 0, 1, 4, 8, 16, 32


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.argument("sources", metavar="SOURCE...", nargs=-1, type=click.Path())
@click.option("-n", "no", is_flag=True, help="Mend nothing, change no byte.")
@click.option("-y", "yes", is_flag=True, help="Mend whatever needs no guess.")
@click.option("-p", "-a", "auto", is_flag=True, help="As -y, silent when clean; for use at boot.")
@click.option("-f", "force", is_flag=True, help="With -p or -a: check also what was unmounted.")
@click.option("-v", "verbose", is_flag=True, help="Say what was looked at.")
@click.option("--json", "as_json", is_flag=True, help="Write the result to stdout as JSON.")
@click.option("--list", "listing", is_flag=True, help="List the checks and exit.")
@click.version_option(daxfs.__version__, "-V", "--version", prog_name=PROG, message="%(prog)s %(version)s")
def command(sources, no, yes, auto, force, verbose, as_json, listing):
    """Check the daxfs file system on SOURCE (all sources of the region, in
    order). Without -n or -y it asks on a terminal before it mends.

    Exit status: 0 clean, 1 mended, 4 problems are left, 8 could not run,
    16 wrong command line, 32 interrupted.
    """
    if listing:
        for name, text in CHECKS.items():
            click.echo(f"{name:20} {text}")
        return CLEAN
    if not sources:
        raise click.UsageError("Missing argument 'SOURCE...'.")
    if no + yes + auto > 1:
        raise click.UsageError("-n, -y and -p (or -a) exclude each other")
    sources = list(sources)
    if auto and not force and _may_skip(sources):
        if verbose:
            common.say(PROG, f"{sources[0]}: clean, it was unmounted")
        if as_json:
            click.echo(json.dumps({"status": CLEAN, "skipped": True}))
        return CLEAN
    mend = yes or auto
    report = look(sources, mend)
    asked = not (no or mend or as_json)
    if asked and any(p.mendable for p in report.left):
        show(report, sources[0], verbose)
        if not _ask(report):
            return report.status
        report = look(sources, True)
    if as_json:
        click.echo(json.dumps(as_dict(report), indent=2))
    else:
        show(report, sources[0], verbose, quiet=auto and not verbose)
    return report.status


def look(sources: list[str], mend: bool) -> Report:
    """Open the region and check it."""
    with _open(sources, mend) as region, common.progress("checking") as draw:
        return check_region(region, mend, lambda phase, done, total: draw(done, total))


def _open(sources: list[str], mend: bool) -> Region:
    if mend:
        return common.patiently(lambda: Region.open(sources, "rw"))
    try:
        return common.patiently(lambda: Region.open(sources, "cow"))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        # devdax has no private mappings; what needs a replay to be looked at says so.
        return Region.open(sources, "ro")


def _may_skip(sources: list[str]) -> bool:
    with common.patiently(lambda: Region.open(sources, "ro")) as region:
        return was_unmounted(region)


def _ask(report: Report) -> bool:
    """Whether to mend: asked on a terminal, else no, and said so."""
    count = sum(p.mendable for p in report.left)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        common.say(PROG, f"nothing was changed; {count} of these can be mended: run fsck.daxfs -y")
        return False
    return click.confirm(f"{PROG}: mend {count} of these problems?", default=False, err=True)


def show(report: Report, name: str, verbose: bool, quiet: bool = False) -> None:
    """Problems one a line, then the summary."""
    left = {p.key for p in report.left}
    mended = {p.key for p in report.mended}
    for problem in report.problems:
        if problem.key in mended:
            click.echo(f"{problem} (mended)")
        elif problem.key in left:
            click.echo(str(problem))
    for problem in report.left:
        if problem not in report.problems:
            click.echo(str(problem))
    for note in report.notes:
        common.say(PROG, f"{name}: {note}")
    if report.replayed and (verbose or not quiet):
        common.say(PROG, f"{name}: {report.replayed} journal records redone")
    if verbose:
        facts = ", ".join(f"{value} {key}" for key, value in report.stats.items() if key != "mounted")
        common.say(PROG, f"{name}: {facts}")
    if report.problems or not quiet:
        common.say(PROG, f"{name}: {_summary(report)}")


def _summary(report: Report) -> str:
    if not report.problems:
        return "clean"
    text = f"{len(report.problems)} problems"
    if report.mended:
        text += f", {len(report.mended)} mended"
    if report.left:
        text += f", {len(report.left)} left"
    if report.mended and report.left:
        text += ". What is left needs a guess: copy out what can be read, then make it anew"
    return text


def as_dict(report: Report) -> dict:
    """The report as plain values."""
    left = {p.key for p in report.left}
    mended = {p.key for p in report.mended}
    return {
        "status": report.status,
        "replayed": report.replayed,
        "stats": report.stats,
        "notes": report.notes,
        "problems": [
            {
                "check": p.check,
                "where": p.where,
                "message": p.message,
                "mendable": p.mendable,
                "mended": p.key in mended,
                "left": p.key in left,
            }
            for p in report.problems
        ],
    }


def main(argv=None) -> int:
    """The exit status as fsck(8) has it."""
    status = common.run(command, PROG, _failure, argv, USAGE)
    return {130: CANCELLED, 141: FAILED}.get(status, status)


def _failure(error: OSError) -> int:
    return USAGE if isinstance(error, UsageError) else FAILED
