# SPDX-License-Identifier: MIT
"""tools/plot_sweep.py: figures, report and numbers of made-up runs, and what it says of damaged ones."""

import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import lab_runs
import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.append(str(TOOLS))  # at its end: tools/ and tests/ have modules of the same names

from lab import cells, drawing, looks, reading, units, wording  # noqa: E402

TRACKS, SIZES, VIAS = ("pte", "pmd", "extent"), (0, 64, 4096, 1 << 20), ("write", "mmap")
SKIP = {"family": "dirty", "cell": {"dirty": 64, "track": "pmd", "via": "msync"},
        "skipped": "no <b>userfaultfd</b> & more"}  # fmt: skip
NS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}


def plot(*args, status=0, code=None):
    """Output of the command; its warnings are errors. *code*: Python that runs before it."""
    start = ["-c", code] if code else [TOOLS / "plot_sweep.py"]
    command = [sys.executable, "-W", "error", "-P", *start, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    if status:
        assert done.stdout == "" and "Traceback" not in done.stderr
        return done.stderr
    assert done.stderr == ""
    return done.stdout


def load(folder):
    run = reading.load(folder)
    return run, {view.family.name: view for view in cells.views(run)}


def expected(visits, family, **where):
    """All samples of a cell, from the visits themselves."""
    found = [visit["samples"] for visit in visits if visit["family"] == family and "samples" in visit
             and where.items() <= visit["cell"].items()]  # fmt: skip
    return np.concatenate([next(iter(samples.values())) for samples in found])


class Tables(html.parser.HTMLParser):
    """Captions and rows of the tables of a page, and all ids and tags."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.ids, self.tags, self.sources = [], [], set(), []
        self.cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.add(tag)
        self.ids += [named["id"]] if "id" in named else []
        self.sources += [named[name] for name in ("src", "href", "xlink:href") if name in named]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th", "caption"):
            self.cell = []
        elif tag in ("span", "b") and self.cell is not None:
            self.cell.append("\n")

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.append(data)

    def handle_endtag(self, tag):
        if tag in ("td", "th", "caption"):
            text = "".join(self.cell).strip()
            if tag == "caption":
                self.tables[-1].append([text])
            else:
                self.tables[-1][-1].append(text)
            self.cell = None


def number(text):
    """A value with its unit, in ns or bytes: by other code than the one that wrote it."""
    value, unit = re.fullmatch(r"([\d.\u202f]+) (\S+)", text.strip()).groups()
    return float(value.replace("\u202f", "")) * NS[unit]


@pytest.fixture(scope="module")
def visits():
    return [*lab_runs.sweep(TRACKS, SIZES, VIAS, rounds=2, count=20), *lab_runs.targets(), SKIP]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, visits):
    """A run that was drawn in its own directory."""
    folder = tmp_path_factory.mktemp("run")
    families = [lab_runs.DIRTY, lab_runs.MAPPED, lab_runs.BARS]
    lab_runs.write(folder, families, visits, rounds=2)
    assert "report.html" in plot(folder)
    return folder


@pytest.fixture(scope="module")
def page(drawn):
    return (drawn / "report.html").read_text()


def texts(path):
    return [element.text for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_every_figure_is_there_twice(drawn):
    names = ["dirty-lines", "dirty-cdf", "dirty-phases", "mapped-lines", "s17-bars"]
    wanted = {f"fsync_sweep-{name}.{kind}" for name in names for kind in ("png", "svg")}
    there = {path.name for path in (drawn / "plots").iterdir()}
    assert wanted <= there and all(re.sub(r"-\d(?=\.)", "", name) in wanted for name in there)
    for path in (drawn / "plots").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


@pytest.mark.parametrize("name, wanted", [
    ("dirty-lines", ["fsync against what is dirty", "dirty bytes", "fsync (lower is better)", "track=pte",
                     "track=pmd", "track=extent", "stores by: write", "stores by: mmap", "0", "64 B"]),
    ("mapped-lines", ["mapped bytes", "fsync (lower is better)", "track=extent", "1 GiB"]),
    ("dirty-cdf", ["share of the samples", "stores by: write, dirty bytes: 1 MiB", "50 %", "track=pte"]),
    ("dirty-phases", ["flush", "drain", "fsync: caller's median", "fsync: caller's mean", "pte"]),
    ("s17-bars", ["throughput, MiB/s (higher is better)", "uring", "ext4", "tmpfs"]),
])  # fmt: skip
def test_axes_and_lines_have_names(drawn, name, wanted):
    found = [text.replace("\xa0", " ") for text in texts(drawn / "plots" / f"fsync_sweep-{name}.svg")]
    assert not [text for text in wanted if text not in found], found


def test_small_print_has_host_and_number_of_samples(drawn):
    words = " ".join(texts(drawn / "plots" / "fsync_sweep-dirty-lines.svg"))
    for part in ("n = 40 each", "commit 23a3c59", "Linux 6.18.44", "Made-up CPU", "flush=clwb"):
        assert part in words


def test_bars_say_their_medians(drawn, visits):
    found = [text.replace("\u202f", "") for text in texts(drawn / "plots" / "fsync_sweep-s17-bars.svg")]
    for target in ("uring", "ext4"):
        assert f"{np.median(expected(visits, 's17', target=target)):.0f}" in found


def test_medians_in_the_tables_are_numpys(page, visits):
    tables = {rows[0][0].split(" · ")[0]: rows[1:] for rows in Tables(page).tables if rows[0]}
    seen = 0
    for via in VIAS:
        head, *rows = tables[f"stores by: {via}".replace(" ", "\xa0")]
        assert head == ["dirty bytes", *TRACKS]
        for size, row in zip(SIZES, rows, strict=True):
            assert number(row[0]) == size
            first = np.median(expected(visits, "dirty", via=via, dirty=size, track="pte"))
            for track, cell in zip(TRACKS, row[1:], strict=True):
                samples = expected(visits, "dirty", via=via, dirty=size, track=track)
                q1, median, q3, p99 = np.percentile(samples, [25, 50, 75, 99])
                lines = cell.split("\n")
                low, high = lines[1].split(" \N{EN DASH} ")
                got = [number(lines[0]), number(low), number(high), number(lines[2].removeprefix("p99 "))]
                assert got == pytest.approx([median, q1, q3, p99], rel=6e-3)
                assert lines[3].startswith("n 40 ")
                ratio = float(lines[3].split("\N{MULTIPLICATION SIGN}")[1])
                assert ratio == pytest.approx(median / first, rel=6e-3)
                seen += 1
    assert seen == len(TRACKS) * len(SIZES) * len(VIAS)


def test_counts_and_phases_are_in_a_table(page):
    (rows,) = [rows for rows in Tables(page).tables if "flushed_bytes" in rows[0]]
    assert {"flushes", "drains", "look", "flush", "reply", "all phases", "fsync, median"} <= set(rows[0])
    row = dict(zip(rows[0], rows[1], strict=True))
    assert (row["drains"], row["look"], row["drain"]) == ("1", "60.0 ns", "90.0 ns")


def test_report_needs_nothing_else(page):
    found = Tables(page)
    assert not {"script", "link", "img", "iframe"} & found.tags
    assert not [url for url in found.sources if "//" in url]
    assert len(found.ids) == len(set(found.ids))
    assert not [url for url in found.sources if url.startswith("#") and url[1:] not in found.ids]
    assert "url(http" not in page and "@import" not in page


def test_report_has_the_colours_as_variables(page):
    body = page[page.index("<body"):]
    assert not [colour for colour in looks.ALL if colour in body] and "var(--c" in body


def test_report_says_what_was_run_and_skipped(page):
    for part in ("Made-up CPU", "6.18.44", "tools/fsync_sweep.py --quick", "tools/plot_sweep.py", "23a3c59",
                 "not power-fail safe", "A coarse bitmap in the driver", "256 extents", "emulate=",
                 "no &lt;b&gt;userfaultfd&lt;/b&gt; &amp; more", lab_runs.DIRTY["words"]):  # fmt: skip
        assert part in page, part
    for part in ("was not finished", "--quick run", "was busy", "cells have fewer", "a model of that"):
        assert part not in page


def test_questions_lead_to_their_figures(page):
    for question, family in (("A coarse bitmap", "dirty"), ("or what is mapped?", "mapped"),
                             ("Is DAX with fsync", "s17")):  # fmt: skip
        part = page[page.index(question):]
        assert f'href="#fsync_sweep-{family}"' in part[:part.index("</p>")]
    part = page[page.index("One flusher, or four?"):]
    assert "Nothing here shows it" in part[:part.index("</p>")]


def test_page_faults_answer_no_question_on_fsync():
    """They have sizes of files, orders of pages and other file systems, too, but nothing is made durable."""
    axes = {name: {"label": name, "kind": kind, "unit": "", "values": []}
            for name, kind in (("mode", "name"), ("size", "number"), ("order", "name"))}
    one = {"ns": np.array([1.0])}
    cells_of = [reading.Cell("resident", {"mode": mode, "size": size, "order": order}, one)
                for mode in ("direct", "ext4") for size in (1, 2) for order in ("sequential", "random")]
    family = reading.Family("resident", "Random loads", "ns", ("lines",), "size", ("mode",), (), "Loads.")
    run = reading.Run(Path(), {}, axes, {"ns": {"label": "load", "unit": "ns"}}, [family],
                      {"resident": {n: cell for n, cell in enumerate(cells_of)}}, {}, [], 0, False)
    shown = [question for question, _, shows in wording.QUESTIONS if shows(cells.View(run, family))]
    assert shown == []


def test_the_same_samples_give_the_same_bytes(drawn, tmp_path):
    plot(drawn, "--output", tmp_path)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(names) == 1 + len(list((drawn / "plots").iterdir()))
    assert not [name for name in names if (tmp_path / name).read_bytes() != (drawn / name).read_bytes()]


def test_json(drawn, visits):
    (run,) = json.loads(plot(drawn, "--json"))["runs"]
    assert run["experiment"] == "fsync_sweep" and run["complete"] and not run["torn"]
    dirty = next(family for family in run["families"] if family["name"] == "dirty")
    assert [one["reason"] for one in dirty["skipped"]] == [SKIP["skipped"]]
    assert len(dirty["cells"]) == len(TRACKS) * len(SIZES) * len(VIAS)
    for cell in dirty["cells"]:
        samples = expected(visits, "dirty", **cell["cell"])
        got, base = cell["measures"]["ns"], expected(visits, "dirty", **cell["cell"] | {"track": "pte"})
        assert got["n"] == samples.size == 40 and cell["visits"] == 2
        wanted = np.percentile(samples, [0, 25, 50, 75, 99, 100])
        assert [got[name] for name in ("min", "q1", "median", "q3", "p99", "max")] == pytest.approx(wanted)
        assert cell["ratio"] == pytest.approx(np.median(samples) / np.median(base))
        assert cell["counts"]["drains"] == 1 and cell["phases"]["walk"] == 110


def few(folder, **more):
    """A run with one family, of two tracks and two sizes."""
    family = lab_runs.DIRTY | {"draw": ["lines"]}
    visits = lab_runs.sweep(("pte", "none"), (64, 4096), ("write",), 1, 3)[:4]
    return lab_runs.write(folder, [family], visits, **more)


def test_a_torn_last_line_is_left_out(tmp_path):
    whole, torn = few(tmp_path / "whole"), few(tmp_path / "torn", torn='{"family": "dirty", "cell": {"dir')
    whole, torn = json.loads(plot(whole, torn, "--json"))["runs"]
    assert torn["torn"] and not whole["torn"] and torn["families"] == whole["families"]


def test_what_a_reader_must_know_first(tmp_path):
    few(tmp_path, ended=None, emulate="cxl", options={"quick": True}, rounds=5, torn="{",
        experiment="<x>/../y", title="a $title",
        host=lab_runs.HOST | {"cpus": 0, "commit": "1234567-dirty", "returned_after_s": 0.0})  # fmt: skip
    plot(tmp_path)
    page = (tmp_path / "report.html").read_text()
    for part in ("4 of 4 cells have fewer than 5 rounds; its last line was cut off", "emulate=cxl: the times",
                 "A --quick run", "was busy: in 4 of 4 visits", "in no commit", "a $title",
                 "gives free memory back to its host"):  # fmt: skip
        assert part in page, part
    (picture,) = (tmp_path / "plots").glob("*.svg")
    assert picture.name == "x_.._y-dirty-lines.svg"
    words = " ".join(texts(picture))
    for part in ("emulate=cxl: the medium's times are a model's", "a quick run", "the run was not finished"):
        assert part in words


def test_one_sample_and_several_runs_of_one_experiment(tmp_path):
    one = [lab_runs.visit("dirty", {"dirty": 64, "track": "pte", "via": "write"}, {"ns": [0]},
                          phases={"flush": 0})]  # fmt: skip
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        lab_runs.write(folder, [lab_runs.DIRTY], one)
    plot(*folders, "--output", tmp_path / "both")
    names = sorted(path.name for path in (tmp_path / "both" / "plots").glob("*.svg"))
    draws = ("cdf", "lines", "phases")
    assert names == [f"fsync_sweep-{run}-dirty-{draw}.svg" for run in "ab" for draw in draws]
    assert '<i class="faint">0 ns</i>' in (tmp_path / "both" / "report.html").read_text()


def test_a_run_s_directory_is_not_named_twice(tmp_path):
    one = [lab_runs.visit("dirty", {"dirty": 64, "track": "pte", "via": "write"}, {"ns": [1]})]
    folders = [tmp_path / name for name in ("fsync_sweep", "fsync_sweep-more")]
    for folder in folders:
        lab_runs.write(folder, [lab_runs.DIRTY | {"draw": ["lines"]}], one)
    plot(*folders, "--output", tmp_path / "both")
    assert {path.name for path in (tmp_path / "both" / "plots").glob("*.svg")} == {
        "fsync_sweep-dirty-lines.svg", "fsync_sweep-more-dirty-lines.svg"}


def test_the_page_begins_with_what_it_is(tmp_path):
    one = [lab_runs.visit("dirty", {"dirty": 64, "track": "pte", "via": "write"}, {"ns": [1]})]
    for name, more in (("a", {}), ("b", {"options": {"quick": True}})):
        lab_runs.write(tmp_path / name, [lab_runs.DIRTY | {"draw": ["lines"]}], one, **more)
    plot(tmp_path / "a", tmp_path / "b", "--output", tmp_path)
    page = (tmp_path / "report.html").read_text()
    head = page[page.index("<h1>"):page.index('id="argument"')]
    assert "is a file system in user space" in head and lab_runs.HOST["cpu"] in head
    assert "survive a power failure" in head and "--quick run" not in head
    assert 'href="#words"' in head and page.count('id="words"') == 1


def test_a_line_has_a_gap_where_something_else_changes(tmp_path):
    """64 MiB of a small file, 256 MiB of a large one: what is between them was not measured."""
    def made(of):
        where = {"track": "pte", "via": "write"}
        return [lab_runs.visit("dirty", {"dirty": dirty, "flushers": of(dirty), **where},
                               {"ns": [dirty, dirty + 1]}) for dirty in (64, 128, 256, 512)]  # fmt: skip
    bands = []
    for name, of in (("same", lambda dirty: 1), ("other", lambda dirty: 1 if dirty < 200 else 4)):
        lab_runs.write(tmp_path / name, [lab_runs.DIRTY | {"draw": ["lines"]}], made(of))
        plot(tmp_path / name)
        (picture,) = (tmp_path / name / "plots").glob("*.svg")
        bands.append(len(re.findall("id=\"FillBetween|id=\"PolyCollection", picture.read_text())))
        assert ("a gap: other flushers" in " ".join(texts(picture))) == (name == "other")
    assert bands == [1, 2]


def test_lines_under_others_are_named(tmp_path):
    made = [lab_runs.visit("dirty", {"dirty": n, "track": track, "via": "write"}, {"ns": [ns * n]})
            for n in (64, 128) for track, ns in (("pte", 100), ("pmd", 105), ("extent", 300))]  # fmt: skip
    _, views = load(lab_runs.write(tmp_path, [lab_runs.DIRTY | {"draw": ["lines"]}], made))
    assert views["dirty"].covered() == [("pte",)]
    plot(tmp_path)
    (picture,) = (tmp_path / "plots").glob("*.svg")
    assert "under other lines: pte" in " ".join(texts(picture))


def test_bars_of_names_and_of_numbers_far_apart(tmp_path):
    """A policy at the abscissa gives the colour; sizes have a panel each; far apart, it is logarithmic."""
    axes = lab_runs.AXES | {"how": {"label": "how", "kind": "name"}}
    family = lab_runs.DIRTY | {"draw": ["bars"], "line": ["how"], "panel": []}
    made = [lab_runs.visit("policies", {"track": track, "how": "a"}, {"ns": [ns]})
            for track, ns in (("pte", 100), ("pmd", 20_000))]  # fmt: skip
    made += [lab_runs.visit("sizes", {"dirty": size, "how": "a"}, {"ns": [size]}) for size in (64, 1 << 20)]
    lab_runs.write(tmp_path, [family | {"name": "policies", "x": "track"}, family | {"name": "sizes"}], made,
                   axes=axes)  # fmt: skip
    plot(tmp_path)
    found = {name: tmp_path / "plots" / f"fsync_sweep-{name}-bars.svg" for name in ("policies", "sizes")}
    words = texts(found["policies"])
    assert {"track=pte", "track=pmd", "100 ns", "20.0 µs", "1 µs", "10 µs"} <= set(words) and "0" not in words
    assert looks.SERIES["pte"] in found["policies"].read_text()
    words = [text.replace("\xa0", " ") for text in texts(found["sizes"])]
    assert {"dirty bytes: 64 B", "dirty bytes: 1 MiB", "64.0 ns", "1.05 ms"} <= set(words)
    assert words.count("0") == 2


def test_a_panel_of_bars_begins_with_a_heading():
    groups = [[("head", x, None), *[("bar", (line,), x) for line in range(4)]] for x in range(9)]
    panels = drawing.together(groups)
    assert [len(panel) for panel in panels] == [30, 15] and panels[1][0] == ("head", 6, None)
    assert [row for panel in panels for row in panel] == [row for group in groups for row in group]


def test_twelve_lines_get_two_panels(tmp_path):
    family = lab_runs.DIRTY | {"draw": ["lines"], "line": ["flushers"], "panel": []}
    made = [lab_runs.visit("dirty", {"dirty": dirty, "flushers": flushers}, {"ns": [flushers]})
            for dirty in (64, 4096) for flushers in range(1, 13)]  # fmt: skip
    plot(lab_runs.write(tmp_path, [family], made))
    words = texts(tmp_path / "plots" / "fsync_sweep-dirty-lines.svg")
    assert {"(1 of 2)", "(2 of 2)", "flushers=1", "flushers=12"} <= {text.strip() for text in words}


def test_two_runs_are_compared(tmp_path):
    """The second has twice the times; one cell of it overlaps with the first, one is missing."""
    places = [{"dirty": dirty, "track": "pte", "via": "write"} for dirty in (64, 128, 256, 512)]
    family = lab_runs.DIRTY | {"draw": ["lines"]}
    first = [lab_runs.visit("dirty", where, {"ns": [90, 100, 110]}) for where in places]
    second = [lab_runs.visit("dirty", where, {"ns": values}) for where, values in
              zip(places[:3], ([190, 200, 210], [1, 200, 300], [45, 50, 55]), strict=True)]  # fmt: skip
    before = lab_runs.write(tmp_path / "before", [family], first)
    after = lab_runs.write(tmp_path / "after", [family], second)
    (found,) = json.loads(plot("--compare", before, after, "--json"))["comparison"]
    assert [cell["ratio"] for cell in found["cells"]] == [2, 2, 0.5]
    assert [cell["apart"] for cell in found["cells"]] == [True, False, True]
    assert found["left_out"] == 1 and found["mean"] == pytest.approx(2 ** (1 / 3))
    plot("--compare", before, after, "--output", tmp_path / "both")
    page = (tmp_path / "both" / "report.html").read_text()
    assert "of 3 ratios: 1.26. Clearly above 1: 1; clearly below: 1. 1 cells are in one" in page
    assert '<i class="faint">2.00</i><span>100 ns \N{RIGHTWARDS ARROW} 200 ns' in page
    other = few(tmp_path / "other", experiment="s17")
    assert "is of fsync_sweep" in plot("--compare", before, other, "--json", status=2)
    assert "takes two runs" in plot("--compare", before, status=2)


BAD = {
    "json": ("run.json", lambda text: text[:100], "damaged, not JSON"),
    "no object": ("run.json", lambda text: "[]", "not the run.json"),
    "format": ("run.json", lambda text: text.replace('"format": 1', '"format": 7'), "format 7"),
    "axis": ("run.json", lambda text: text.replace('"x": "dirty"', '"x": "moon"'), "'moon' is not among"),
    "measure": ("run.json", lambda text: text.replace('"measure": "ns"', '"measure": "x"'), "not among"),
    "draw": ("run.json", lambda text: text.replace('"lines"', '"pie"'), "'pie' can't be drawn"),
    "kind": ("run.json", lambda text: text.replace('"number"', '"pair"'), "neither of numbers"),
    "families": ("run.json", lambda text: text.replace('"families"', '"fam"'), "'families'"),
    "line": ("samples.jsonl", lambda text: text.replace("}", "", 3), "line 1: damaged"),
    "bytes": ("samples.jsonl", lambda text: "\0\0" + text, "line 1: damaged"),
    "no number": ("samples.jsonl", lambda text: text.replace("[", "[NaN, ", 1), "line 1: damaged"),
    "no list": ("samples.jsonl", lambda text: text.replace("[", "[[2], ", 1), "line 1: damaged"),
    "family": ("samples.jsonl", lambda text: text.replace('"dirty"', '"x"', 1), "'x' is not in run.json"),
    "name": ("samples.jsonl", lambda text: text.replace('"dirty": 64', '"dirty": "64"', 1), "no number"),
    "no x": ("samples.jsonl", lambda text: text.replace('"dirty": 64, ', "", 1), "has no 'dirty'"),
    "empty": ("samples.jsonl", lambda text: "", "no samples"),
    "skipped": ("samples.jsonl", lambda text: json.dumps(SKIP) + "\n", "every cell was skipped"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_damage_is_one_sentence(tmp_path, case):
    name, change, words = BAD[case]
    path = few(tmp_path) / name
    path.write_text(change(path.read_text()))
    with pytest.raises(reading.RunError) as raised:
        reading.load(tmp_path)
    assert words in str(raised.value) and str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_the_command_refuses(tmp_path):
    assert "no such directory" in plot(tmp_path / "none", status=2)
    assert "run.json: No such file" in plot(tmp_path, status=2)
    assert plot(status=2) == "plot_sweep: a directory of a run is needed; --help shows what there is\n"
    few(tmp_path)
    (tmp_path / "file").touch()
    said = plot(tmp_path, "--output", tmp_path / "file", status=2)
    assert said.startswith("plot_sweep: ") and said.count("\n") == 1
    assert not (tmp_path / "plots").exists()


def test_a_full_disk_is_named(tmp_path):
    few(tmp_path)
    code = (f"import resource, runpy, sys; sys.argv = ['x', {str(tmp_path)!r}]; "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
            f"runpy.run_path({str(TOOLS / 'plot_sweep.py')!r}, run_name='__main__')")  # fmt: skip
    assert plot(status=2, code=code) == f"plot_sweep: {tmp_path}: File too large\n"


def test_without_matplotlib(tmp_path):
    code = ("import runpy, sys; sys.modules['matplotlib'] = None; sys.argv[0] = 'x'; "
            f"runpy.run_path({str(TOOLS / 'plot_sweep.py')!r}, run_name='__main__')")  # fmt: skip
    few(tmp_path)
    assert "matplotlib is missing: pip install" in plot(tmp_path, status=2, code=code)
    assert json.loads(plot(tmp_path, "--json", code=code))["runs"]


def test_cells_that_differ_elsewhere_are_not_mixed(tmp_path):
    made = [lab_runs.visit("dirty", {"dirty": 64, "track": "pte", "via": "write", "flushers": flushers},
                           {"ns": [flushers] * 3}) for flushers in (1, 4)]  # fmt: skip
    _, views = load(lab_runs.write(tmp_path, [lab_runs.DIRTY], made))
    view = views["dirty"]
    assert view.lines == [("pte", 1), ("pte", 4)] and view.line_title() == "track=, flushers="
    styles = looks.styles(view.lines, {})
    assert styles["pte", 1]["color"] == styles["pte", 4]["color"] == looks.SERIES["pte"]
    assert styles["pte", 1]["marker"] != styles["pte", 4]["marker"]


def test_order_and_chosen_places(drawn):
    _, views = load(drawn)
    assert views["dirty"].lines == [(track,) for track in TRACKS] and views["dirty"].xs == list(SIZES)
    assert views["dirty"].chosen(("write",)) == [0, 4096, 1 << 20]
    names = ["v10", "v9", "tmpfs", "extent", "pte", "ext4", 3, 20]
    assert sorted(names, key=cells.order) == [3, 20, "pte", "extent", "ext4", "tmpfs", "v9", "v10"]


def test_names_stand_as_run_json_has_them(tmp_path):
    axes = lab_runs.AXES | {"track": lab_runs.AXES["track"] | {"values": ["none", "pmd", "pte"]}}
    _, views = load(few(tmp_path, axes=axes))
    assert views["dirty"].lines == [("none",), ("pte",)] and views["dirty"].first(("write",)) == ("none",)


def test_counts_are_means_by_samples(tmp_path):
    where = {"dirty": 64, "track": "pte", "via": "write"}
    made = [lab_runs.visit("dirty", where, {"ns": [5] * 30}, counts={"drains": 1}),
            lab_runs.visit("dirty", where, {"ns": [5] * 10}, counts={"drains": 3})]  # fmt: skip
    run, _ = load(lab_runs.write(tmp_path, [lab_runs.DIRTY], made))
    (cell,) = run.cells["dirty"].values()
    assert cell.counts == {"drains": 1.5} and cell.visits == 2


@pytest.mark.parametrize("value, unit, text", [
    (0, "ns", "0 ns"), (812.4, "ns", "812 ns"), (999.6, "ns", "1.00 µs"), (5_104, "ns", "5.10 µs"),
    (2.5e9, "ns", "2.50 s"), (64, "B", "64.0 B"), (1 << 21, "B", "2.00 MiB"),
    (4990.2, "MiB/s", "4\u202f990 MiB/s"), ("pte", "B", "pte"), (0.04567, "", "0.0457"),
])  # fmt: skip
def test_numbers(value, unit, text):
    assert units.show(value, unit) == text


def test_ticks():
    assert units.log_ticks(900, 1.1e6) == [1e3, 1e4, 1e5, 1e6]
    assert units.log_ticks(2.5, 90) == [5, 10, 20, 50]
    assert units.log_ticks(2.5, 90, 0.35) == [5, 20]
    assert units.log_ticks(480, 7500, 0.25) == [500, 1000, 2000, 5000]
    assert units.binary_ticks(64, 1 << 26, 5) == [64, 1 << 11, 1 << 16, 1 << 21, 1 << 26]
    assert units.show(1 << 16, "B", units.short) == "64 KiB" and units.show(1e4, "ns", units.short) == "10 µs"


def test_the_committed_runs_are_read():
    """docs/experiments; test_experiments_page.py holds its page to them."""
    folder = TOOLS.parent / "docs" / "experiments"
    runs = sorted(path.parent for path in folder.glob("*/run.json"))
    found = {run["experiment"]: run for run in json.loads(plot(*runs, "--json"))["runs"]}
    assert set(found) == {"fsync_sweep", "fault_sweep", "s17", "fio_suite", "xfs_io_suite"}
    assert all(run["host"]["commit"] and "dirty" not in run["host"]["commit"] for run in found.values())
