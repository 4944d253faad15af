# SPDX-License-Identifier: MIT
"""How lines, bars and phases look: colours that keep their meaning in every figure, markers, dashes, sizes.

A colour belongs to a policy or a target. Figures have the light ones; the report's style sheet names each of
them as a variable and has a second set for a dark page (``VARIABLES``, ``DARK``).
"""

from lab.cells import words

INK, MUTED, GRID, PAPER, WARN = "#1a1a1b", "#5b5b5e", "#dcdcde", "#fffffe", "#b00020"

# Mostly of Okabe and Ito. Simulated (Machado 2009), any two policies are 16 or more apart in CIELAB on
# a light page, whichever the colour blindness; extent and extent+clear are of one family.
SERIES = {
    "pte": "#0072b2", "pmd": "#d55e00", "line": "#009e73", "extent": "#cc79a7", "extent+clear": "#7a2a5c",
    "none": "#101012", "ext4": "#e69f00", "xfs": "#56b4e9", "tmpfs": "#66666b",
}  # fmt: skip
OTHERS = ("#332288", "#44aa99", "#999933", "#aa4499", "#6699cc", "#cc6677", "#117733", "#661100")
# The transports of daxfs, where targets are compared; daxfs by itself.
ALIASES = {"uring": "pte", "dev": "line", "pyfuse3": "pmd", "daxfs": "pte"}
MARKS = {"pte": "o", "pmd": "s", "line": "^", "extent": "D", "extent+clear": "v", "none": "X", "ext4": "P",
         "xfs": "<", "tmpfs": "*"}  # fmt: skip
DASHES = {"pte": "-", "pmd": (0, (6, 2)), "line": (0, (4, 1.5, 1, 1.5)), "extent": (0, (1.5, 1.2)),
          "extent+clear": (0, (6, 1.5, 1, 1.5, 1, 1.5)), "none": (0, (2.5, 2.5)), "ext4": (0, (8, 2, 2, 2)),
          "xfs": (0, (5, 1, 1, 1)), "tmpfs": (0, (1, 2.2))}  # fmt: skip
MORE_MARKS = ("o", "s", "^", "D", "v", "X", "P", "<", "*", ">", "h", "p")
MORE_DASHES = ("-", (0, (6, 2)), (0, (1.5, 1.2)), (0, (4, 1.5, 1, 1.5)), (0, (8, 2, 2, 2)), (0, (2.5, 2.5)))

PHASES = {
    "lock": "#117734", "look": "#88ccee", "walk": "#0072b3", "flush": "#d55e01", "drain": "#e69f01",
    "meta": "#009e74", "reply": "#cc79a8", "python": "#999934", "other": "#b5b5b7",
}  # fmt: skip
MORE_PHASES = ("#44aa9a", "#aa449a", "#661101", "#332289")
CALLER = "#1a1a1c"

DARK = {
    INK: "#ececef", MUTED: "#a9a9b0", GRID: "#3a3b40", PAPER: "#1d1e22", WARN: "#ff8a8a", CALLER: "#ffffff",
    "#0072b2": "#4aa8e8", "#d55e00": "#f5763a", "#009e73": "#2fc79c", "#cc79a7": "#e59cc5",
    "#7a2a5c": "#a8327c", "#101012": "#fffffd", "#e69f00": "#ffd468", "#56b4e9": "#a8dcfa",
    "#66666b": "#8f8f98", "#332288": "#9a8cf0", "#44aa99": "#63cbbb", "#999933": "#c4c45a",
    "#aa4499": "#d678c6", "#6699cc": "#8fb9e4", "#cc6677": "#e88c9a", "#117733": "#4fb873",
    "#661100": "#c9705c",
}  # fmt: skip
ALL = list(dict.fromkeys([INK, MUTED, GRID, PAPER, WARN, CALLER, *SERIES.values(), *OTHERS, *PHASES.values(),
                          *MORE_PHASES]))  # fmt: skip
VARIABLES = {colour: f"--c{number}" for number, colour in enumerate(ALL)}


def known(line: tuple) -> str | None:
    """The policy, target or transport that gives a line its colour: the first of its values that does."""
    whole = [str(value).lower() for value in line]
    parts = [word for value in whole for word in words(value)]
    found = [name for name in (*whole, *parts) if name in SERIES or name in ALIASES]
    return next((name for name in found if name != "daxfs"), found[0] if found else None)


def styles(lines: list, others: dict) -> dict:
    """Line -> {color, marker, linestyle}. The first value gives the colour, marks and dashes tell the rest.

    *others*: numbers of the values that have no colour of their own, kept by the caller over all figures.
    """
    made: dict[tuple, dict] = {}
    used: dict[str, int] = {}
    for line in lines:
        name = known(line)
        shared = ALIASES.get(name, name)
        # A second line of a transport's has a colour of its own; of all others, that of the first.
        if name is None or (name in ALIASES and shared in used):
            shared = line if name else line[:1]
            at = others.setdefault(shared, len(others))
            style = {"color": OTHERS[at % len(OTHERS)], "marker": MORE_MARKS[at % len(MORE_MARKS)],
                     "linestyle": MORE_DASHES[at % len(MORE_DASHES)]}  # fmt: skip
        else:
            style = {"color": SERIES[shared], "marker": MARKS[shared], "linestyle": DASHES[shared]}
        again = used.get(shared, 0)
        used[shared] = again + 1
        if again:
            mark, dash = MORE_MARKS.index(style["marker"]) + again, style["linestyle"]
            rest = [other for other in MORE_DASHES if other != dash]
            style["marker"] = MORE_MARKS[mark % len(MORE_MARKS)]
            style["linestyle"] = rest[(again - 1) % len(rest)]
        made[line] = style
    return made


def phase_colours(names: list) -> dict:
    """Phase -> colour; a phase that is not known gets one of the others."""
    unknown = [name for name in names if name not in PHASES]
    return {name: PHASES.get(name) or MORE_PHASES[unknown.index(name) % len(MORE_PHASES)] for name in names}


def themed(svg: str) -> str:
    """The colours of a figure as variables of the report's style sheet."""
    for colour, name in VARIABLES.items():
        svg = svg.replace(colour, f"var({name})")
    return svg


def style_sheet() -> str:
    """The variables, light, and dark on screens that want it."""
    light = "".join(f"{name}:{colour};" for colour, name in VARIABLES.items())
    # A phase's colour is a policy's with another last digit, so that replacing one leaves the other alone.
    near = {colour: next((dark for other, dark in DARK.items() if other[:6] == colour[:6]), colour)
            for colour in ALL}  # fmt: skip
    dark = "".join(f"{name}:{DARK.get(colour, near[colour])};" for colour, name in VARIABLES.items())
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
