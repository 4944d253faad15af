# SPDX-License-Identifier: MIT
"""report.html: what was run, the argument and where its questions are answered, figures, tables, words.

One file that needs nothing else: figures are inlined as SVG, in the colours of a light or a dark page. What
comes from the files of a run is escaped.
"""

import math
import re
from datetime import datetime
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template

from lab import looks, units
from lab.cells import P99_FROM, Point, View
from lab.drawing import Figure, possible, stem
from lab.reading import Run
from lab.sheet import place_text
from lab.wording import ARGUMENT, GLOSSARY, LEAD, QUESTIONS
from lab.words import medium

TEMPLATE = Path(__file__).with_name("report.html")
EN, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
OPEN_ROWS = 24  # of a table that is shown without being asked for
RETURNED_S = 60  # memory that goes back to the host sooner makes visits uneven
BUSY = 0.1  # share of the visits with more runnable than CPUs, from which on a run was disturbed
FACTS = (("cpu", "CPU"), ("cpus", "CPUs"), ("memory_bytes", "memory"),
         ("returned_after_s", "seconds until free memory may go back to the host"), ("kernel", "kernel"),
         ("commit", "commit of daxfs"), ("code", "digest of the code"), ("daxfs", "version"),
         ("flush", "flush instruction"), ("python", "Python"))  # fmt: skip


class Section:
    """A run in the report: its name in files and anchors, its views and figures."""

    def __init__(self, name: str, run: Run, views: list, figures: list):
        self.name, self.run, self.views, self.figures = name, run, views, figures

    def anchor(self, family: str) -> str:
        return stem(self.name, family)


def write(path: Path, sections: list, comparison: str = "", folder: str = "plots") -> None:
    """The report of *sections* to *path*; *comparison*: more HTML; *folder*: where the figures' files are."""
    titles = _titles(sections)
    plain = dict.fromkeys(_title(section) for section in sections)
    title = "; ".join(plain) if len(plain) <= 2 else f"daxfs: {len(titles)} experiments"
    body = [f"<h1>{escape(title)}</h1>", *_lead(sections)]
    if len(sections) > 1:
        links = [f'<li><a href="#{section.name}">{escape(text)}</a></li>'
                 for section, text in zip(sections, titles, strict=True)]  # fmt: skip
        body.append(f"<ul>{''.join(links)}</ul>")
    else:
        body += _head(sections[0])
    body += [comparison, *_argument(sections)]
    for section, text in zip(sections, titles, strict=True):
        if len(sections) > 1:
            body += [f'<h2 id="{section.name}">{escape(text)}</h2>', *_head(section)]
        for view in section.views:
            body += _family(section, view, folder)
        body += _skipped(section)
    body += [*_again(sections, bool(comparison)), *_glossary()]
    page = Template(TEMPLATE.read_text("utf-8")).substitute(
        title=escape(title), colours=looks.style_sheet(), body="\n".join(part for part in body if part))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, "utf-8")


def _lead(sections: list) -> list[str]:
    """What this page is, and for several runs what is to be known of all of them."""
    asked = [section.run.host.get for section in sections]
    hosts = dict.fromkeys(f"{of('cpu', '?')}, {of('cpus', '?')} CPUs, Linux {of('kernel', '?')}"
                          for of in asked)
    days = sorted({str(section.run.facts.get("started", "?"))[:10] for section in sections})
    made = [f"<p>{escape(LEAD)} Measured on {escape(' and '.join(days))}: {escape('; '.join(hosts))}. Words "
            'are explained <a href="#words">at the end</a>.</p>']
    told = [warnings(section.run) for section in sections]
    if common := [text for text in told[0] if len(sections) > 1 and all(text in one for one in told)]:
        items = "".join(f"<li>{escape(text)}</li>" for text in common)
        made.append(f'<div class="warn"><ul>{items}</ul></div>')
    return made


def _title(section: Section) -> str:
    return str(section.run.facts.get("title") or section.run.experiment)


def _titles(sections: list) -> list[str]:
    """A title for each run, with its directory and commit where several have the same."""
    plain = [_title(section) for section in sections]
    return [title if plain.count(title) == 1 else
            f"{title} ({section.run.path.name}, {section.run.host.get('commit', '?')})"
            for title, section in zip(plain, sections, strict=True)]  # fmt: skip


# What was run.


def warnings(run: Run) -> list[str]:
    """What a reader has to know before believing a number, a sentence each."""
    found = [] if run.host.get("power_fail_safe") else [
        "Nothing in this run says that its regions survive a power failure. The laboratory's are files on "
        "tmpfs: emulated regions, not power-fail safe."]  # fmt: skip
    emulate = run.facts.get("emulate") or "none"
    if emulate != "none":
        found.append(f"emulate={emulate}: the times of stores and flushes are those of a model of that "
                     "medium (docs/emulation.md), not of a real one.")
    found += _emulated(run)
    if run.options.get("quick"):
        found.append("A --quick run: few cells and samples, to have a look. No evidence.")
    found += _unfinished(run)
    cpus = run.host.get("cpus")
    if run.loads and isinstance(cpus, int):
        busy = sum(load > cpus for load in run.loads)
        if busy >= BUSY * len(run.loads):
            found.append(f"The machine was busy: in {busy} of {len(run.loads)} visits the load was above its "
                         f"{cpus} CPUs, at most {max(run.loads):.1f}.")
    after = run.host.get("returned_after_s")
    if isinstance(after, int | float) and after < RETURNED_S:
        found.append("This virtual machine gives free memory back to its host (free page reporting). Where a "
                     "program takes memory anew, its first touch may cost many times as much as any other, "
                     "or not: expect outliers there (docs/laboratory.md).")
    if str(run.host.get("commit", "")).endswith("-dirty"):
        found.append("The code had changes that are in no commit.")
    return found


def _emulated(run: Run) -> list[str]:
    """Where single cells have a medium."""
    families = {family.title: {medium(cell.where) for cell in run.cells[family.name].values()}
                for family in run.families}
    return [f"Some of \"{title}\" has emulate={', '.join(sorted(media - {'none'}))}: times of a model."
            for title, media in families.items() if media - {"none"}]


def _unfinished(run: Run) -> list[str]:
    cells = [cell for found in run.cells.values() for cell in found.values()]
    rounds = run.facts.get("rounds")
    short = [cell for cell in cells if isinstance(rounds, int) and cell.visits < rounds]
    less = f"{len(short)} of {len(cells)} cells have fewer than {rounds} rounds" if short else ""
    if run.facts.get("ended") is None:
        torn = "; its last line was cut off and is left out" if run.torn else ""
        return [f"The run was not finished{': ' + less if less else ''}{torn}."]
    return [f"The time limit ended it early: {less}."] if less else []


def _duration(run: Run) -> str:
    try:
        began, ended = (datetime.fromisoformat(run.facts[name]) for name in ("started", "ended"))
        seconds = (ended - began).total_seconds()
    except (KeyError, TypeError, ValueError):
        seconds = run.last_s
    sittings = run.facts.get("sittings")
    more = f", in {len(sittings)} sittings" if isinstance(sittings, list) and len(sittings) > 1 else ""
    return (f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min") + more


def _head(section: Section) -> list[str]:
    """Warnings and facts."""
    run = section.run
    told = warnings(run)
    items = "".join(f"<li>{escape(text)}</li>" for text in told)
    made = [f'<div class="warn"><ul>{items}</ul></div>'] if told else []
    facts = [(label, _fact(name, run.host[name])) for name, label in FACTS
             if run.host.get(name) not in (None, "")]  # fmt: skip
    options = [f"{name}={value}" for name, value in run.options.items() if value not in (None, "", False)]
    samples = sum(array.size for cells in run.cells.values() for cell in cells.values()
                  for array in cell.samples.values())  # fmt: skip
    visits = sum(cell.visits for cells in run.cells.values() for cell in cells.values())
    facts += [("options", " ".join(options) or "none"), ("seed", str(run.facts.get("seed"))),
              ("emulate", str(run.facts.get("emulate") or "none")), ("begun", str(run.facts.get("started"))),
              ("took", _duration(run)), ("samples", f"{samples} in {visits} visits")]  # fmt: skip
    if run.loads:
        loads = sorted(run.loads)
        facts.append(("load", f"{loads[0]:.2f} to {loads[-1]:.2f}, median {loads[len(loads) // 2]:.2f}"))
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return [*made, f'<dl class="facts">{rows}</dl>']


def _fact(name: str, value) -> str:
    return units.show(value, "B", units.short) if name == "memory_bytes" else str(value)


def _argument(sections: list) -> list[str]:
    """The questions, each with links to the families that show something of it."""
    made = ['<h2 id="argument">The argument, and where to look</h2>', f"<p>{escape(ARGUMENT)}</p>"]
    for question, sides, shows in QUESTIONS:
        links = [f'<a href="#{section.anchor(view.family.name)}">{escape(view.family.title)}</a>'
                 + (f" ({escape(section.name)})" if len(sections) > 1 else "")
                 for section in sections for view in section.views
                 if view.points and shows(view)]  # fmt: skip
        nothing = '<span class="soft">Nothing here shows it.</span>'
        where = f"Look at: {'; '.join(links)}." if links else nothing
        made.append(f"<h4>{escape(question)}</h4><p>{escape(sides)} {where}</p>")
    return made


# Families.


def _family(section: Section, view: View, folder: str) -> list[str]:
    family = view.family
    made = [f'<h3 id="{section.anchor(family.name)}">{escape(family.title)}</h3>']
    if family.words:
        made.append(f"<p>{escape(family.words)}</p>")
    if not view.points:
        return [*made, '<p class="soft">No samples: nothing to draw.</p>']
    steady = [view.said(axis, value) for axis, value in view.steady().items()]
    if steady:
        made.append(f'<p class="soft">The same everywhere: {escape(", ".join(steady))}.</p>')
    missing = [(draw, possible(view, draw)) for draw in family.draw]
    made += [_figure(figure, view, folder) for figure in section.figures if figure.family == family.name]
    made += [f'<p class="soft">Not drawn as {draw}: {reason}.</p>' for draw, reason in missing if reason]
    tables = [_pivot(view, panel) if view.family.x else _flat(view, panel) for panel in view.panels]
    rows = len(view.points) if view.family.x is None else len(view.panels) * len(view.xs)
    made.append(_details(f"{view.measure['label']} in numbers", "".join(tables), rows))
    return [*made, _per_call(view)]


def _details(title: str, inside: str, rows: int) -> str:
    """What can be folded, and is if it has many rows."""
    unfolded = " open" if rows <= OPEN_ROWS else ""
    return f"<details{unfolded}><summary>{escape(title)}</summary>{inside}</details>"


def _figure(figure: Figure, view: View, folder: str) -> str:
    """The SVG with its colours as variables, and its ids as its own."""
    svg = figure.svg[figure.svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{figure.stem}-", svg)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])
    svg = re.sub(r'<svg ([^>]*?)height="[\d.]+pt"([^>]*?)width="[\d.]+pt"', r"<svg \1\2", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)width="[\d.]+pt"([^>]*?)height="[\d.]+pt"', r"<svg \1\2", svg, count=1)
    label = escape(f"{view.family.title}: {figure.draw}", quote=True)
    more = f'role="img" aria-label="{label}" style="max-width:{width * 1.35:.0f}px"'
    svg = svg.replace("<svg ", f"<svg {more} ", 1)
    links = " ".join(f'<a href="{folder}/{figure.stem}.{kind}">{kind.upper()}</a>'
                     for kind in ("png", "svg"))  # fmt: skip
    return (f'<figure id="{figure.stem}">{looks.themed(svg)}<figcaption>{escape(figure.stem)} · {links}'
            "</figcaption></figure>")


def _numbers(view: View, point: Point, ratio: float) -> list[str]:
    """Median, quartiles, p99, n and ratio of a cell, as HTML."""
    one = point.numbers
    p99 = view.show(one.p99)
    return [f"<b>{view.show(one.median)}</b>", f"{view.show(one.q1)} {EN} {view.show(one.q3)}",
            p99 if one.n >= P99_FROM else f'<i class="faint">{p99}</i>', f"{one.n}",
            "" if math.isnan(ratio) else f"{units.digits(ratio)}"]  # fmt: skip


def _x_label(view: View) -> str:
    return view.run.axes[view.family.x]["label"].rstrip("=")


def _pivot(view: View, panel: tuple) -> str:
    """A panel as a table: x downwards, lines across."""
    lines = [line for line in view.lines if any((panel, line, x) in view.points for x in view.xs)]
    head = "".join(f"<th>{escape(view.line_text(line))}</th>" for line in lines)
    x_label = escape(_x_label(view))
    rows = []
    for x in view.xs_of(panel):
        row = [f'<td class="name">{escape(view.x_text(x))}</td>']
        for line in lines:
            point = view.points.get((panel, line, x))
            if point is None:
                row.append(f'<td class="soft">{EN}</td>')
                continue
            median, quartiles, p99, n, ratio = _numbers(view, point, view.ratio(panel, line, x))
            row.append(f"<td>{median}<span>{quartiles}</span><span>p99 {p99}</span>"
                       f"<span>n {n}{f' · {TIMES}{ratio}' if ratio else ''}</span></td>")
        rows.append(f"<tr>{''.join(row)}</tr>")
    title = escape(place_text(view, panel, None) or view.line_title())
    first = escape(view.line_text(view.first(panel)))
    each = f"each: median, quartiles, p99, n, {TIMES} ratio to {first}"
    return (f'<div class="scroll"><table><caption>{title} · {each}</caption><thead><tr><th>{x_label}</th>'
            f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>")


def _flat(view: View, panel: tuple) -> str:
    """A panel without abscissa as a table: a line in each row."""
    first = escape(view.line_text(view.first(panel)))
    rows = []
    for line in view.lines:
        point = view.points.get((panel, line, None))
        if point:
            cells = _numbers(view, point, view.ratio(panel, line, None))
            rows.append(f'<tr><td class="name">{escape(view.line_text(line))}</td>'
                        + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("median", "quartiles", "p99", "n", f"ratio to {first}"))
    unit = view.measure["unit"]
    measure = view.measure["label"] + (f", {unit}" if unit and not units.carried(unit) else "")
    title = escape(", ".join(text for text in (place_text(view, panel, None), measure) if text))
    return (f'<div class="scroll"><table><caption>{title}</caption><thead><tr><th>{escape(view.line_title())}'
            f"</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>")


def _per_call(view: View) -> str:
    """Counts and phases of each cell, by the daemon's own counters."""
    phases = view.phases()
    counts = [name for name in view.counts()
              if any(point.cell.counts.get(name) for point in view.points.values())]  # fmt: skip
    if not counts and not phases:
        return ""
    points = [(key, point) for key, point in _in_order(view) if point.cell.counts or point.cell.phases]
    lead = (["where"] if view.family.panel else []) + ([_x_label(view)] if view.family.x else [])
    lead.append(view.line_title())
    label = view.measure["label"]
    totals = ["all phases", f"{label}, mean", f"{label}, median"] if phases else []
    head = "".join(f"<th>{escape(name)}</th>" for name in [*lead, *counts, *phases, *totals])
    rows = []
    for (panel, line, x), point in points:
        row = [place_text(view, panel, None)] if view.family.panel else []
        row += ([view.x_text(x)] if view.family.x else []) + [view.line_text(line)]
        made = "".join(f'<td class="name">{escape(text)}</td>' for text in row)
        made += "".join(f"<td>{_count(name, point.cell.counts.get(name))}</td>" for name in counts)
        made += "".join(f"<td>{_ns(point.cell.phases.get(name))}</td>" for name in phases)
        if phases:
            made += f"<td>{_ns(sum(point.cell.phases.values()) or None)}</td>"
            caller = (point.numbers.mean, point.numbers.median)
            made += "".join(f"<td>{view.show(value)}</td>" for value in caller)
        rows.append(f"<tr>{made}</tr>")
    return _details("Of one call, by the daemon's counters",
                    f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
                    "</table></div>", len(rows))  # fmt: skip


def _in_order(view: View) -> list:
    return [((panel, line, x), view.points[panel, line, x]) for panel in view.panels for x in view.xs
            for line in view.lines if (panel, line, x) in view.points]  # fmt: skip


def _count(name: str, value: float | None) -> str:
    if value is None:
        return EN
    return units.show(value, "B", units.short) if "bytes" in name else units.short(value)


def _ns(value: float | None) -> str:
    return EN if value is None else units.show(value, "ns")


# The rest.


def _skipped(section: Section) -> list[str]:
    if not section.run.skipped:
        return []
    made = ["<h3>What was left out, and why</h3><ul>"]
    for (family, reason), cells in sorted(section.run.skipped.items()):
        shown = [", ".join(f"{axis} {value}" for axis, value in cell.items()) for cell in cells.values()]
        more = f"; and {len(shown) - 6} more" if len(shown) > 6 else ""
        made.append(f"<li>{escape(family)}: {escape(reason)} <span class=\"soft\">({len(shown)}: "
                    f"{escape('; '.join(shown[:6]))}{more})</span></li>")
    return [*made, "</ul>"]


def _again(sections: list, compared: bool) -> list[str]:
    """How to measure it again, and to draw it again."""
    made = ["<h2>To do it again</h2>"]
    for commit, group in groupby(sections, key=lambda section: str(section.run.host.get("commit") or "?")):
        lines = [f"sudo {section.run.facts.get('command')}" for section in group]
        made.append(f"<p>At commit <code>{escape(commit)}</code>, after <code>make build</code>:</p>"
                    f"<pre>{escape(chr(10).join(lines))}</pre>")
    dirs = " ".join(str(section.run.path) for section in sections)
    draw = escape(f"tools/plot_sweep.py {'--compare ' if compared else ''}{dirs}")
    made.append(f"<p>The figures, from the files alone:</p><pre>{draw}</pre>")
    return made


def _glossary() -> list[str]:
    words = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in GLOSSARY)
    return ['<h2 id="words">Words</h2>', f'<dl class="words">{words}</dl>']
