# SPDX-License-Identifier: MIT
"""What the experiments in tools/ share, without a mount: turns, samples on disk, tables, words."""

import functools
import json
import os
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

import loops
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

from lab import arguments, beside, facts, rigs, schedule, table, timed, words, worker  # noqa: E402
from lab.plan import Axis, Cell, CellError, CellFailed, Family, HostError, Measure, Plan, Visit  # noqa: E402
from lab.store import Run, RunError  # noqa: E402


class Made:
    """A plan whose visits are counted here; *fails*: values of x that can't be measured."""

    def __init__(self, xs=(1, 2, 3), tracks=("pte", "none"), rounds: int = 3, fails=(),
                 stop_after: int = 10**9):
        self.visits: list[tuple] = []
        self.fails, self.stop_after = fails, stop_after
        cells = [Cell({"dirty": x, "track": track}, lambda seconds, seed, x=x, track=track:
                      self.visit(x, track, seed)) for x in xs for track in tracks]
        family = Family("dirty", "a title", "words", "ns", ("lines",), ("track",), cells, "dirty")
        axes = {"dirty": Axis("dirty bytes", "number", "B"), "track": Axis("track=")}
        self.plan = Plan("trial", "title", axes, {"ns": Measure("fsync", "ns")}, [family], rounds)

    def visit(self, x: int, track: str, seed: int) -> Visit:
        if len(self.visits) == self.stop_after:
            raise KeyboardInterrupt
        if x in self.fails:
            raise CellError("it can't be had")
        self.visits.append((x, track, seed))
        return Visit({"ns": [seed, 1000 * x]}, {"drain": 1.0})

    def run(self, directory: Path, seed: int = 1, **kwargs) -> bool:
        run = Run(directory, self.plan, kwargs.pop("options", {}), seed)
        complete = schedule.run(run, self.plan, seed, 0.01, **kwargs)
        run.close(complete)
        return complete


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]


def test_turns_depend_on_the_seed_alone():
    cells = [Cell({"x": n}, lambda seconds, seed: None) for n in range(20)]
    orders = {(seed, turn): tuple(cell.axes["x"] for cell in schedule.turns(cells, seed, "f", turn))
              for seed in (1, 2) for turn in range(3)}
    random.seed(99)
    again = {(seed, turn): tuple(cell.axes["x"] for cell in schedule.turns(cells, seed, "f", turn))
             for seed, turn in orders}
    assert orders == again and len(set(orders.values())) == 6
    assert all(sorted(one) == list(range(20)) for one in orders.values())


def test_turns_keep_the_order_that_cells_ask_for():
    cells = [Cell({"x": n}, lambda seconds, seed: None, order=n // 5) for n in range(20)]
    found = [cell.order for cell in schedule.turns(cells, 1, "f", 0)]
    assert found == sorted(found)


def test_each_round_goes_over_all_cells_with_the_same_work_for_each_line(tmp_path):
    made = Made()
    assert made.run(tmp_path)
    assert len(made.visits) == 3 * 6
    for turn in range(3):
        part = made.visits[turn * 6:turn * 6 + 6]
        assert sorted({(x, track) for x, track, _ in part}) == sorted({(x, t) for x in (1, 2, 3)
                                                                      for t in ("pte", "none")})
        seeds = {x: {seed for other, _, seed in part if other == x} for x in (1, 2, 3)}
        assert all(len(one) == 1 for one in seeds.values()) and len(set().union(*seeds.values())) == 3


def test_a_stopped_run_makes_what_is_missing_and_no_more(tmp_path):
    first, whole = Made(stop_after=8), Made()
    assert not first.run(tmp_path)
    assert len(lines(tmp_path)) == 8 and json.loads((tmp_path / "run.json").read_text())["ended"] is None
    second = Made()
    assert second.run(tmp_path)
    assert whole.run(tmp_path / "whole")
    assert first.visits + second.visits == whole.visits
    keep = ("family", "cell", "round", "seq", "samples", "counts")
    assert [[row[name] for name in keep] for row in lines(tmp_path)] == \
        [[row[name] for name in keep] for row in lines(tmp_path / "whole")]


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_torn_line_is_cut_off(tmp_path, cut):
    made = Made(stop_after=4)
    made.run(tmp_path)
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = Made()
    assert again.run(tmp_path)
    assert len(again.visits) == 18 - 3 and len(lines(tmp_path)) == 18
    assert [row["seq"] for row in lines(tmp_path)] == list(range(18))


@pytest.mark.parametrize("line", [
    '{"famly": "dirty"}', "garbage", "[]", "7", '"text"', "null", "\0", '{"family":"dirty","cell":[]}',
    '{"family":"dirty","cell":{"x":[]},"round":0,"seq":0,"samples":{}}',
    '{"family":"dirty","cell":{},"round":0,"seq":"a","samples":{}}', '{"family":"dirty","cell":{}}',
    '{"family":"dirty","cell":{},"round":0,"seq":0,"samples":[]}'])
def test_a_line_that_is_damaged_is_refused(tmp_path, line):
    Made(stop_after=4).run(tmp_path)
    path = tmp_path / "samples.jsonl"
    text = "\n".join([line, *path.read_text().split("\n")[1:]])
    path.write_text(text)
    with pytest.raises(RunError, match="damaged after 0 bytes"):
        Made().run(tmp_path)
    assert path.read_text() == text


@pytest.mark.parametrize(("facts", "said"), [
    ("[]", "not an object"), ("{", "property name"), ("", "Expecting value"),
    ({"started": None}, "fromisoformat"), ({"started": "yesterday"}, "yesterday"),
    ({"sittings": {}}, "wrong kind"), ({"ended": 5}, "wrong kind"),
    ("no sittings", "no 'sittings'")])
def test_facts_that_are_damaged_are_refused(tmp_path, facts, said):
    Made(stop_after=4).run(tmp_path)
    path, before = tmp_path / "run.json", (tmp_path / "samples.jsonl").read_bytes()
    there = json.loads(path.read_text())
    if facts == "no sittings":
        facts = {name: value for name, value in there.items() if name != "sittings"}
    elif isinstance(facts, dict):
        facts = there | facts
    path.write_text(facts if isinstance(facts, str) else json.dumps(facts))
    with pytest.raises(RunError, match=rf"run\.json is damaged \(.*{said}.*--anew$"):
        Made().run(tmp_path)
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_a_full_disk_is_said_and_the_run_goes_on(tmp_path):
    """A limit to files' size stands for the disk: half a line gets in, and nothing of it stays."""
    made = Made()
    run, (family,) = Run(tmp_path, made.plan, {}, 1), made.plan.families
    run.add(family, family.cells[0], 0, Visit({"ns": [1]}))
    kept, facts = ((tmp_path / name).read_bytes() for name in ("samples.jsonl", "run.json"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 20, before[1]))
    try:
        for call in (functools.partial(run.add, family, family.cells[1], 0, Visit({"ns": [2]})),
                     functools.partial(run.close, False)):
            with pytest.raises(RunError, match=r"^/.*: File too large; what was measured is kept"):
                call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name for path in tmp_path.iterdir()} == {"samples.jsonl", "run.json"}
    assert [(tmp_path / name).read_bytes() for name in ("samples.jsonl", "run.json")] == [kept, facts]
    again = Made()
    assert again.run(tmp_path) and len(again.visits) == 17


@pytest.mark.parametrize(("kwargs", "said"), [
    ({"seed": 2}, "seed"), ({"options": {"quick": True}}, "options"),
])
def test_another_run_is_refused(tmp_path, kwargs, said):
    Made(stop_after=4).run(tmp_path)
    before = (tmp_path / "samples.jsonl").read_bytes()
    with pytest.raises(RunError, match=rf"another run \({said} differ\)"):
        Made().run(tmp_path, **kwargs)
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_another_commit_is_refused(tmp_path):
    Made(stop_after=4).run(tmp_path)
    path = tmp_path / "run.json"
    facts = json.loads(path.read_text())
    facts["host"]["commit"] = "0000000"
    path.write_text(json.dumps(facts))
    with pytest.raises(RunError, match=r"another run \(commit differ\)"):
        Made().run(tmp_path)


def test_other_code_of_the_same_commit_is_refused(tmp_path, monkeypatch):
    """Changes that are in no commit; an installed daxfs that is not the checkout's."""
    package, checkout = tmp_path / "daxfs", tmp_path / "checkout"
    for path in (package / "__init__.py", package / "a.so", checkout / "tools" / "lab" / "worker.c",
                 checkout / "tests" / "mounts.py", checkout / "tests" / "loops.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    monkeypatch.setattr(facts.daxfs, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(facts, "ROOT", checkout)
    Made(stop_after=4).run(tmp_path / "run")
    (package / "a.pyc").write_text("byte code comes and goes")
    assert not Made(stop_after=1).run(tmp_path / "run")
    for path in (package / "a.so", checkout / "tools" / "lab" / "worker.c"):
        had = path.read_text()
        path.write_text("changed")
        with pytest.raises(RunError, match=r"another run \(code differ\)"):
            Made().run(tmp_path / "run")
        path.write_text(had)
    assert Made().run(tmp_path / "run")


def test_samples_without_facts_are_refused(tmp_path):
    Made(stop_after=4).run(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunError, match=r"samples and no run\.json"):
        Made().run(tmp_path)


def test_what_can_t_be_measured_is_asked_once(tmp_path):
    made = Made(fails=(2,))
    assert made.run(tmp_path)
    skipped = [row for row in lines(tmp_path) if "skipped" in row]
    assert len(skipped) == 2 and all(row["skipped"] == "it can't be had" for row in skipped)
    assert len(made.visits) == 3 * 4


def test_a_time_limit_leaves_whole_rounds(tmp_path):
    made = Made(rounds=50)
    assert made.run(tmp_path, limit_s=1e-6)
    assert len(made.visits) == 6
    assert json.loads((tmp_path / "run.json").read_text())["ended"]


def test_tables_have_medians_and_quartiles_in_one_unit(tmp_path, capsys):
    facts = {"axes": {"dirty": {"label": "dirty bytes", "kind": "number", "values": [64, 4096]},
                      "track": {"label": "track=", "kind": "name", "values": ["pte", "none"]}},
             "measures": {"ns": {"label": "fsync", "unit": "ns"}},
             "families": [{"name": "f", "title": "a title", "measure": "ns", "x": "dirty", "line": ["track"],
                           "panel": []}]}
    rows = [{"family": "f", "cell": {"dirty": 4096, "track": "none"}, "samples": {"ns": [1500]}},
            {"family": "f", "cell": {"dirty": 64, "track": "pte"}, "samples": {"ns": [1000, 2000, 3000]}},
            {"family": "f", "cell": {"dirty": 64, "track": "pte"}, "samples": {"ns": [4000, 5_000_000]}},
            {"family": "f", "cell": {"dirty": 64, "track": "none"}, "skipped": "no such thing"}]
    (tmp_path / "run.json").write_text(json.dumps(facts))
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert table.show_run(tmp_path)
    out = capsys.readouterr().out
    assert "fsync, µs: median, quartiles; columns: track=" in out
    assert [line.split() for line in out.splitlines() if "pte" in line or "B" in line] == [
        ["dirty", "bytes", "pte", "none"], ["64", "B", "3", "-"], ["4", "KiB", "-", "1.5"]]
    assert "2 - 4" in out and "skipped, f, 1 cell: no such thing" in out
    assert max(map(len, out.splitlines())) <= 100


def test_percentiles_beside_a_suite_are_the_report_s():
    for values in ([7], [1000, 2000, 9000], list(range(250))):
        for part in (0.5, 0.99):
            assert beside._percentile(values, part) == pytest.approx(np.percentile(values, part * 100))
    assert beside._texts([9000, 1000, 2000], {"unit": "ns", "label": "time"}) == ["2", "8.86"]


@pytest.mark.parametrize("quick", [True, False])
def test_a_quick_run_says_that_it_is_no_evidence(tmp_path, capsys, quick):
    assert Made().run(tmp_path, options={"quick": quick})
    table.show_run(tmp_path)
    assert ("no evidence" in capsys.readouterr().out) == quick


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_progress_says_how_far_it_is_on_any_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(schedule, "Console", functools.partial(schedule.Console, force_terminal=True))
    family = Made(xs=(4096,)).plan.families[0]
    with schedule.Progressing("trial", 1000) as progress:
        console = progress._console
        for cell in family.cells:
            progress.visit(family, cell)
        (segments,) = console.render_lines(progress._bar.get_renderable())
    line = "".join(segment.text for segment in segments).rstrip()
    assert "   1/1000 0:00:0" in line and len(line) <= width
    assert line.startswith("dirty: 4 KiB none" if width > 60 else "dirty: 4")


def test_a_wide_table_is_broken_between_columns(tmp_path, capsys):
    made = Made(tracks=tuple(f"policy-number-{n}" for n in range(12)), rounds=1)
    assert made.run(tmp_path)
    table.show_run(tmp_path)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= table.WIDTH
    assert all(out.count(f"policy-number-{n} ") + out.count(f"policy-number-{n}\n") == 1 for n in range(12))


def test_words():
    assert [words.parse_bytes(text) for text in ("64", "4K", "2MiB", "1g")] == [64, 4096, 2 << 20, 1 << 30]
    assert [words.show_bytes(value) for value in (64, 4096, 3 << 19, 1 << 30)] == \
        ["64 B", "4 KiB", "1536 KiB", "1 GiB"]
    for text in ("", "K", "-4K", "4T", "1.5M", "4 K K"):
        with pytest.raises(ValueError, match="not a size"):
            words.parse_bytes(text)
    assert [words.show_ns(value) for value in (12, 3456, 7_890_000)] == ["12 ns", "3.46 µs", "7.89 ms"]


def test_a_file_too_large_for_memory_is_a_reason_to_skip():
    rigs.need(1, "a byte")
    with pytest.raises(CellError, match="a file of 1 PiB needs 1073741824 MiB of memory"):
        rigs.need(1 << 50, "a file of 1 PiB")


@pytest.mark.mount
@pytest.mark.skipif(bool(loops.why_not("ext4")), reason="no ext4 over a loop device")
def test_ext4_lies_in_memory_of_the_same_kind_as_daxfs():
    with rigs.disk("ext4", 64 << 20) as one:
        line = next(line for line in Path("/proc/self/mounts").read_text().splitlines()
                    if line.split()[1] == str(one.image.parent))
        assert "huge=always" in line
    assert not one.image.parent.exists() and not one.path.exists()


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_disks_have_all_their_memory_before_anything_is_timed(kind):
    """Their allocators go on to blocks that were never used: without this the image grows."""
    if loops.why_not(kind):
        pytest.skip(loops.why_not(kind))
    with rigs.disk(kind, 64 << 20) as one:
        had = one.image.stat().st_blocks * 512
        assert had >= one.image.stat().st_size
        for _ in range(2):
            with open(one.path / "file", "wb") as file:
                file.write(bytes(24 << 20))
                os.fsync(file.fileno())
            (one.path / "file").unlink()
        assert one.image.stat().st_blocks * 512 == had


def test_only_what_dead_runs_left_is_taken_away(tmp_path, monkeypatch):
    monkeypatch.setattr(rigs.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(rigs.mounts, "PREFIX", "unused")
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    for name in (f"daxfs-lab-{gone}-0.log", f"daxfs-lab-{os.getpid()}-0.log", "daxfs-lab-x",
                 "daxfs-test-1-0.log"):
        (tmp_path / name).touch()
    (tmp_path / f"daxfs-lab-{gone}-0.mnt").mkdir()
    assert sorted(Path(path).name for path in rigs.prepare()) == [f"daxfs-lab-{gone}-0.log",
                                                                  f"daxfs-lab-{gone}-0.mnt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"daxfs-lab-{os.getpid()}-0.log", "daxfs-lab-x", "daxfs-test-1-0.log"])


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_a_worker_that_dies_is_no_cell_to_be_skipped(tmp_path):
    with worker.Worker(None) as one:
        one.ask("open", tmp_path / "file", 8192, "write")
        os.kill(one._process.pid, signal.SIGBUS)
        with pytest.raises(CellFailed, match="ended with status -7 at use"):
            one.ask("use")
        with pytest.raises(CellError, match="open: No such file") as found:
            one.ask("open", tmp_path / "none" / "file", 8192, "write")
        assert not isinstance(found.value, CellFailed)


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """For `carry_out` here: mounts are possible, and nothing of this process or host changes."""
    monkeypatch.setattr(arguments.mounts, "why_no_mounts", lambda: None)
    monkeypatch.setattr(arguments.mounts, "end_on_sigterm", lambda: None)
    monkeypatch.setattr(arguments.mounts, "close_all", lambda: None)
    monkeypatch.setattr(arguments.mounts, "ENABLE_URING", tmp_path / "enable_uring")
    monkeypatch.setattr(arguments.rigs, "prepare", list)
    monkeypatch.setattr(sys, "argv", ["trial.py"])
    (tmp_path / "enable_uring").write_text("N")
    args = arguments.parser("A trial.", "trial", 3).parse_args(["--output", str(tmp_path / "run")])
    yield arguments.settle(args, "trial")
    arguments.mounts.why_no_transport.cache_clear()


def test_uring_is_switched_on_before_anybody_plans_and_off_at_the_end(ready, tmp_path, capsys):
    arguments.mounts.why_no_transport.cache_clear()
    assert "echo Y" in arguments.mounts.why_no_transport("uring")

    def plan(_args):
        raise HostError(arguments.mounts.why_no_transport("uring") or "it can be had")
    assert arguments.carry_out(ready, plan) == 2
    assert "echo Y" not in capsys.readouterr().err
    assert (tmp_path / "enable_uring").read_text() == "N"


@pytest.mark.parametrize(("error", "status"), [
    (HostError("no such host"), 2), (rigs.RigError("it died"), 1), (CellFailed("it is wrong"), 1),
    (KeyboardInterrupt(), 130),
    (OSError(28, "No space left on device"), 1),
])
def test_what_fails_has_a_status_and_a_line(ready, capsys, error, status):
    closed = []
    made = Made()

    def visit(seconds, seed):
        raise error
    made.plan.families[0].cells[0].visit = visit
    made.plan.close = lambda: closed.append(True)
    assert arguments.carry_out(ready, lambda args: made.plan) == status
    said = capsys.readouterr().err
    assert "trial.py: " in said and "Traceback" not in said and closed == [True]
    assert "goes on in" in said if status == 130 else str(error) in said


def test_without_root_it_says_so(ready, monkeypatch, capsys):
    monkeypatch.setattr(arguments.mounts, "why_no_mounts", lambda: "not root: mounts need it (sudo)")
    assert arguments.carry_out(ready, lambda args: Made().plan) == 2
    assert capsys.readouterr().err == "trial.py: not root: mounts need it (sudo)\n"


def test_a_run_without_one_sample_fails(ready, capsys):
    assert arguments.carry_out(ready, lambda args: Made(fails=(1, 2, 3)).plan) == 2
    out = capsys.readouterr()
    assert "skipped, dirty, 6 cells: it can't be had" in out.out and "nothing could be measured" in out.err


def test_a_command_is_timed_to_the_millisecond():
    """subprocess with a time-out looks every 50 ms: of 0.12 s it makes 0.16."""
    assert min(timed.timed(["sleep", "0.12"])[0] for _ in range(5)) < 0.145
    took, said = timed.timed(["sh", "-c", "echo out; echo err >&2"])
    assert took < 1 and said.split() == ["out", "err"]
    with pytest.raises(CellFailed, match="status 3 why"):
        timed.timed(["sh", "-c", "echo why; exit 3"])


def test_a_command_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(timed, "HANGS_S", 0.1)
    with pytest.raises(CellFailed, match="status -9"):
        timed.timed(["sleep", "60"])


@pytest.mark.parametrize("bits, delay, after", [
    ("011001", None, 0.0), ("011001", "0", 0.0), ("0110011", "300000", 300.0), ("011000", "300000", None),
    ("01", None, None), (None, "0", None),
])  # fmt: skip
def test_whether_free_memory_leaves_the_machine(tmp_path, bits, delay, after):
    """By bit 5 of what the balloon's driver and device have agreed on."""
    if bits is not None:
        (tmp_path / "virtio0").mkdir()
        (tmp_path / "virtio0" / "features").write_text(bits + "\n")
    if delay is not None:
        (tmp_path / "delay").write_text(delay + "\n")
    assert facts.returned_after(tmp_path, tmp_path / "delay") == after
