#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A picture (PNG, SVG, PDF) of what tools/bench/transport.py wrote with --json.

    tools/bench/draw.py RESULT.json PICTURE.png

One panel for each measurement that kept its samples: a bar is the median of the rounds, the whisker goes from
the first to the third quarter. Measures nothing. Needs matplotlib: pip install 'daxfs[plot]'.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

COLOURS = {"pyfuse3": "#999999", "dev": "#4477aa", "uring": "#228833", "C": "#ccbb44", "C pinned": "#eedd99",
           "tmpfs": "#ee6677",
           "ext4": "#aa3377"}  # fmt: skip
ACROSS = 3


def pyplot():
    """matplotlib.pyplot, for files alone; SystemExit where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("draw: matplotlib is missing: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    return plt


def bar(axis, at: int, name: str, values: list[float]) -> None:
    """One bar with its whisker and its number."""
    middle = statistics.median(values)
    low, high = middle, middle
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    spread = [[middle - low], [high - middle]]
    axis.bar(at, middle, color=COLOURS.get(name, "#bbbbbb"), yerr=spread, capsize=3)
    axis.annotate(f"{middle:.3g}", (at, high), textcoords="offset points", xytext=(0, 3), ha="center",
                  fontsize=8)


def draw(result: dict, target: Path) -> None:
    """All panels of *result* into *target*."""
    plt = pyplot()
    panels = {what: {name: values for name, values in found.items() if values}
              for what, found in result["samples"].items()}
    panels = {what: found for what, found in panels.items() if found}
    rows = -(-len(panels) // ACROSS)
    inches = (4.2 * ACROSS, 2.9 * rows)
    figure, axes = plt.subplots(rows, ACROSS, figsize=inches, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    for axis, (what, found) in zip(axes.flat, panels.items(), strict=False):
        for at, (name, values) in enumerate(found.items()):
            bar(axis, at, name, values)
        axis.set_title(what, fontsize=9)
        axis.set_xticks(range(len(found)), found)
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    facts = "  ".join(f"{key} {value}" for key, value in result["host"].items())
    figure.suptitle(f"{result['title']}\n{facts}", fontsize=10)
    figure.savefig(target, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    result = json.loads(args.result.read_text())
    if not result.get("samples"):
        print(f"draw: {args.result} holds no samples", file=sys.stderr)
        return 1
    draw(result, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
