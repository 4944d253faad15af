#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draw what an experiment measured: figures as PNG and SVG, and one self-contained report in HTML.

    tools/plot_sweep.py DIR [DIR...] [--output DIR]      plots/*.png, plots/*.svg and report.html
    tools/plot_sweep.py DIR... --json                    medians, quartiles, ratios on stdout; draws nothing
    tools/plot_sweep.py --compare BEFORE AFTER           the same, with the ratios of the two runs' medians

DIR is what an experiment was given as --output: it holds run.json and samples.jsonl, and nothing else is
read. A run that goes on, or was killed, can be drawn too; the report says so. What was drawn before is
replaced; the same samples give the same bytes. Needs matplotlib: pip install 'daxfs[plot]'.
Exit status: 0; 2 if a directory holds no run, a damaged one, or one without samples.
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
if None in map(importlib.util.find_spec, ("numpy", "matplotlib", "rich")):
    import lab.start  # noqa: F401  goes on with the checkout's interpreter

from lab import cells, compare, drawing, reading, report, sheet


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; exit status 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; --help shows what there is\n")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    head, _, rest = __doc__.partition("\n\n")
    parser = Parser(prog="plot_sweep", description=head, epilog=rest,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="DIR", help="a run's directory")
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="where plots/ and report.html go (default: the first DIR)")
    parser.add_argument("--compare", action="store_true",
                        help="of two runs of one experiment: ratios of the second's medians to the first's")
    parser.add_argument("--json", action="store_true", help="print the cells' numbers instead of drawing")
    args = parser.parse_args(words)
    if not args.runs:
        parser.error("a directory of a run is needed")
    if args.compare and len(args.runs) != 2:
        parser.error("--compare takes two runs, BEFORE and AFTER")
    return args


def names(runs: list) -> list[str]:
    """A name for each run, for files: the experiment's, with the directory's where two are of one."""
    made: list[str] = []
    for run in runs:
        name = drawing.stem(run.experiment)
        if sum(other.experiment == run.experiment for other in runs) > 1:
            own = run.path.resolve().name
            name = drawing.stem(own) if own.startswith(run.experiment) else drawing.stem(run.experiment, own)
        made.append(name if name not in made else f"{name}-{len(made) + 1}")
    return made


def progress(total: int):
    """A bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    return bar, bar.add_task("drawing", total=total)


def draw(runs: list, output: Path, comparison: str) -> tuple[Path, int]:
    """All figures and the report; the report's path, and how many figures."""
    sheet.pyplot()  # before anything is made: it may be missing
    folder, others, sections = output / "plots", {}, []
    views = [cells.views(run) for run in runs]
    bar, task = progress(sum(len(view.family.draw) for found in views for view in found))
    with bar:
        for run, name, found in zip(runs, names(runs), views, strict=True):
            made = []
            for view in found:
                for figure in drawing.figures(view, name, folder, others):
                    made.append(figure)
                bar.advance(task, len(view.family.draw))
            sections.append(report.Section(name, run, found, made))
    path = output / "report.html"
    report.write(path, sections, comparison)
    return path, sum(len(section.figures) for section in sections)


def main() -> int:
    args = arguments()
    try:
        runs = [reading.load(folder) for folder in args.runs]
        if args.json:
            more = {"comparison": compare.summary(*runs)} if args.compare else {}
            print(json.dumps({"format": 1, "runs": [cells.summary(run) for run in runs], **more}, indent=1))
            return 0
        comparison = compare.html(*runs) if args.compare else ""
        path, count = draw(runs, args.output or args.runs[0], comparison)
    except reading.RunError as error:
        print(f"plot_sweep: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = error.filename or args.output or args.runs[0]  # a full disk has no name
        print(f"plot_sweep: {where}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{path} ({count} figures in {path.parent / 'plots'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
