# SPDX-License-Identifier: MIT
"""The HTML page of a crash sweep, made of the dict of summary.build.

One file that loads nothing from elsewhere. Whatever comes from a sequence or an error is escaped.
"""

import html
import math

from .summary import TOP_VIOLATIONS, cells, clock, last_line, unfinished, violation_lines

STYLE = """
:root { color-scheme: light dark; --line: #8884; --bad: #c62828; --good: #2e7d32; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
.n { text-align: right; } .bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); }
.wide { overflow-x: auto; } .note { opacity: .75; }
.map td { min-width: 1.9rem; text-align: right; border: 1px solid var(--line); font-size: .75rem;
          padding: .15rem .3rem; }
.map th { font-size: .75rem; font-weight: 500; border: 0; white-space: nowrap; }
.map thead th { writing-mode: vertical-rl; text-align: left; }
.map td.hit { background: var(--bad); color: #fff; font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0 1rem; padding: .6rem;
      border: 1px solid var(--line); border-radius: 4px; font-size: .82rem; }
"""


def page(summary: dict) -> str:
    """The HTML page."""
    title = f"Crash sweep: {last_line(summary)}"
    verdict = "bad" if summary["violations"] or summary["failures"] else "good"
    parts = [
        f'<h1>Crash sweep</h1><p class="{verdict}">{_text(last_line(summary))}</p>',
        f'<p class="bad">{_text(unfinished(summary))}</p>' if summary["left"] else "",
        _facts(summary),
        "<h2>Sets</h2>", _set_rows(summary),
        _heat_map(summary["pairs"]),
        _violations(summary), _failures(summary),
        _ops(summary["ops"]), _cost_rows(summary["costs"]),
    ]
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n'
            + "\n".join(part for part in parts if part) + "\n</body></html>\n")


def _text(value) -> str:
    return html.escape(str(value))


def _table(headings, rows, numbers: int = 0) -> str:
    """A table of text, its last *numbers* columns numbers; rows are (cells, whether it is bad)."""
    def line(row, tag):
        left = len(row) - numbers
        return "".join(f'<{tag}{" class=n" if at >= left else ""}>{_text(cell)}</{tag}>'
                       for at, cell in enumerate(row))

    head = f"<thead><tr>{line(headings, 'th')}</tr></thead>" if headings else ""
    body = "".join(f"<tr{' class=bad' if bad else ''}>{line(row, 'td')}</tr>\n" for row, bad in rows)
    return f'<div class="wide"><table>{head}<tbody>\n{body}</tbody></table></div>'


def _facts(summary: dict) -> str:
    about = dict(summary["parameters"])
    limits = ", ".join(f"{name} {limit}" for name, limit in about.pop("limit").items())
    parameters = ", ".join(f"{name} {value}" for name, value in about.items())
    rows = [("time", summary["time"]), ("commit", summary["commit"]), ("code digest", summary["digest"]),
            ("host", summary["host"]), ("parameters", parameters),
            ("images for a crash point", f"at most: {limits}"),
            ("sequences", f"{summary['sequences']:,}, of them {summary['resumed']:,} from earlier runs"),
            ("crash points", f"{summary['points']:,}"), ("running", clock(summary["seconds"])),
            ("images a minute", f"{summary['images_per_minute']:,}")]
    return _table((), [(row, False) for row in rows])


def _set_rows(summary: dict) -> str:
    headings = ("set", "sequences", "left", "points", "images", "nested", "violations", "time", "images/min")
    rows = [((row["set"], f"{row['sequences']:,}", f"{row['left']:,}", *cells(row)), row["violations"])
            for row in summary["sets"]]
    return _table(headings, rows, numbers=8)


def _heat_map(pairs: list[dict]) -> str:
    if not pairs:
        return ""
    firsts = sorted({pair["first"] for pair in pairs})
    seconds = sorted({pair["second"] for pair in pairs})
    there = {(pair["first"], pair["second"]): pair for pair in pairs}
    most = max(pair["images"] for pair in pairs)
    head = "".join(f"<th>{_text(second)}</th>" for second in seconds)
    rows = "".join(f"<tr><th>{_text(first)}</th>"
                   + "".join(_heat(there.get((first, second)), most) for second in seconds) + "</tr>\n"
                   for first in firsts)
    return ("<h2>Two operations: images</h2>"
            '<p class="note">Down: the first; across: the second, in or after which the power failed. '
            'Red: with violations.</p><div class="wide"><table class="map">'
            f"<thead><tr><th></th>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>")


def _heat(pair: dict | None, most: int) -> str:
    if pair is None:
        return "<td></td>"
    if pair["violations"]:
        return f'<td class="hit" title="{pair["violations"]:,} violations">{pair["images"]:,}</td>'
    strength = math.log1p(pair["images"]) / math.log1p(most) if most else 0
    return f'<td style="background:rgb(66 133 244 / {0.55 * strength:.2f})">{pair["images"]:,}</td>'


def _violations(summary: dict) -> str:
    if not summary["violations"]:
        return ""
    shown = summary["found"]
    rest = summary["violations"] - len(shown)
    more = f'<p class="note">{rest:,} more are in results.jsonl.</p>' if rest else ""
    return "<h2>Violations</h2>" + "".join(
        f"<details{' open' if number < TOP_VIOLATIONS else ''}><summary>{_text(found['sequence']['name'])}: "
        f"{_text((found['complaints'] or ['?'])[0])}</summary>"
        f"<pre>{_text(chr(10).join(violation_lines(found)))}</pre></details>\n"
        for number, found in enumerate(shown)) + more


def _failures(summary: dict) -> str:
    if not summary["failures"]:
        return ""
    return "<h2>Sequences that could not be run to their end</h2>" + "".join(
        f"<details open><summary>{_text(failure['name'])}</summary>"
        f"<pre>{_text(failure['text'])}\n\n{_text(failure['replay'])}</pre></details>\n"
        for failure in summary["failures"])


def _ops(ops: dict) -> str:
    if not ops:
        return ""
    rows = [((op, f"{count:,}"), False) for op, count in ops.items()]
    return "<h2>Images by the operation in flight</h2>" + _table(("operation", "images"), rows, numbers=1)


def _cost_rows(costs: list[dict]) -> str:
    if not costs:
        return ""
    rows = [((row["kind"], row["site"], f"{row['count']:,}"), False) for row in costs]
    return ("<h2>Flushes and drains for nothing</h2>"
            + _table(("kind", "call site", "count"), rows, numbers=1))
