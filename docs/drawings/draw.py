#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The drawings of docs/fault.md: who does what, from top to bottom, as SVG beside this file.

    docs/drawings/draw.py [--check]

Each drawing is a list of lanes and of rows: a text in a lane, or an arrow from lane to lane. --check writes
nothing and ends with 1 if a file is not what would be written. Limits: standard library alone; what a row
says has to be kept true by hand.
"""

import sys
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
LANE, ROW, LEFT, TOP = 215, 30, 20, 58
FONT = "font-family='sans-serif' font-size='13'"
CLIENT, KERNEL, DAEMON, MEMORY = "#4477aa", "#aa3377", "#228833", "#997700"

FAULT = "One fault with fault=user, from store to store", [
    ("client: a thread", CLIENT), ("kernel", KERNEL), ("daemon: handler thread", DAEMON),
    ("entry of the page", MEMORY)], [
    (0, "stores to page p"),
    (0, 1, "nothing mapped there"),
    (1, 2, "message: address, a store"),
    (2, "whose file, which page of it"),
    (2, "fault_decide: 2 MiB or 4 KiB"),
    (2, 3, "grab: p, or its 2 MiB"),
    (3, "locked; others wait"),
    (2, "a hole: storage, durable metadata"),
    (2, 3, "mark, before the store"),
    (3, "locked, dirty"),
    (2, 1, "UFFDIO_CONTINUE"),
    (1, 0, "mapped, woken"),
    (2, 3, "unlock"),
    (3, "dirty; waiters go on"),
    (0, "the store is done"),
    (0, "more stores to p: no fault"),
    None,
    (2, "write-back, for an fsync"),
    (2, 3, "lock"),
    (2, 1, "UFFDIO_WRITEPROTECT on"),
    (2, "flush p's lines, drain"),
    (2, 3, "clean, then unlock"),
    None,
    (0, "stores to p again"),
    (0, 1, "it is write-protected"),
    (1, 2, "message: address, protected"),
    (2, 3, "lock, mark"),
    (2, 1, "UFFDIO_WRITEPROTECT off"),
    (1, 0, "woken"),
    (2, 3, "unlock"),
    (0, "the store is done"),
]  # fmt: skip

FSYNC = "One fsync of a file that a client has mapped with fault=kernel", [
    ("who calls fsync", CLIENT), ("daemon: metadata thread", DAEMON), ("daemon: look thread", DAEMON),
    ("client's page table", KERNEL)], [
    (3, "a store to page p: written"),
    (0, 1, "FSYNC"),
    (1, "the inode's turn: one at a time"),
    (1, 2, "look: pieces of the file"),
    (1, "answers others meanwhile"),
    (2, 3, "still this file here?"),
    (2, 3, "scan: written? protect it"),
    (3, "p protected; its store was found"),
    (3, "a store to p from now on:"),
    (3, "written again, the next look's"),
    (2, 3, "still this file here?"),
    (2, "no msync of the client's under way?"),
    (2, 1, "p was written"),
    (1, "mark p in the dirty bitmap"),
    (1, "flush the lines of what is dirty"),
    (1, "drain"),
    (1, "clear the marks"),
    (1, 0, "reply: that store is durable"),
]  # fmt: skip


def text(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
    return f"<text x='{x:g}' y='{y:g}' text-anchor='{anchor}' {FONT} {more}>{escape(words)}</text>"


def arrow(start: float, end: float, y: float, words: str, colour: str) -> list[str]:
    head = end + (9 if end < start else -9)
    return [f"<line x1='{start:g}' y1='{y:g}' x2='{head:g}' y2='{y:g}' stroke='{colour}' "
            "stroke-width='1.6'/>",
            f"<path d='M {end:g} {y:g} L {head:g} {y - 4.5:g} L {head:g} {y + 4.5:g} Z' fill='{colour}'/>",
            text((start + end) / 2, y - 5, words)]


def picture(title: str, lanes: list, rows: list) -> str:
    """The SVG: lanes from left to right, a row a line."""
    middles = [LEFT + LANE * (lane + 0.5) for lane in range(len(lanes))]
    width, height = 2 * LEFT + LANE * len(lanes), TOP + 40 + ROW * len(rows)
    out = [f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
           f"height='{height}' role='img'>",
           f"<title>{escape(title)}</title>", f"<rect width='{width}' height='{height}' fill='white'/>"]
    for x, (name, colour) in zip(middles, lanes, strict=True):
        out += [f"<rect x='{x - LANE / 2 + 6:g}' y='14' width='{LANE - 12}' height='28' rx='4' "
                f"fill='{colour}'/>",
                text(x, 33, name, more="fill='white' font-weight='bold'"),
                f"<line x1='{x:g}' y1='42' x2='{x:g}' y2='{height - 12}' stroke='{colour}' "
                "stroke-width='1' stroke-dasharray='3 4'/>"]
    for at, row in enumerate(rows):
        y = TOP + 26 + ROW * at
        if row is None:
            out.append(f"<line x1='{LEFT}' y1='{y - 6}' x2='{width - LEFT}' y2='{y - 6}' stroke='#bbbbbb'/>")
        elif len(row) == 3:
            start, end, words = row
            out += arrow(middles[start], middles[end], y, words, lanes[start][1])
        else:
            lane, words = row
            x, colour = middles[lane], lanes[lane][1]
            half = max(3.6 * len(words) + 8, 30)
            out += [f"<rect x='{x - half:g}' y='{y - 17:g}' width='{2 * half:g}' height='23' rx='3' "
                    f"fill='white' stroke='{colour}'/>", text(x, y - 1, words)]
    return "\n".join([*out, "</svg>", ""])


def main(words: list[str]) -> int:
    stale = []
    for name, drawing in (("fault.svg", FAULT), ("fsync.svg", FSYNC)):
        file, made = HERE / name, picture(*drawing)
        if words == ["--check"]:
            if not file.exists() or file.read_text() != made:
                stale.append(name)
        else:
            file.write_text(made)
    for name in stale:
        print(f"docs/drawings/{name} is not what docs/drawings/draw.py draws: run it", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
