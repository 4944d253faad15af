# SPDX-License-Identifier: MIT
"""tools/crash_sweep.py with a stand-in for the engine: what it runs, resumes, prints, and how it ends."""

import dataclasses
import html.parser
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import standin
from crash import sweep

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/crash_sweep.py"
sys.path.insert(0, str(TOOL.parent))

import crash_sweep  # noqa: E402


class Tool:
    """Runs the tool with jobs of the stand-in, and results in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.out, self.log = folder, folder / "out", folder / "log"
        self.env = {**os.environ, "CRASH_SWEEP_PARTS": "standin", "STANDIN_LOG": str(self.log),
                    "PYTHONPATH": str(Path(__file__).parent), "PYTHONDONTWRITEBYTECODE": "1"}

    def jobs(self, **sets):
        for name, names in sets.items():
            self.env[f"STANDIN_{name.upper()}"] = "\n".join(names)

    def command(self, *args):
        return [sys.executable, "-P", str(TOOL), "--out", str(self.out), *args]

    def start(self, *args):
        return subprocess.Popen(self.command(*args), env=self.env, cwd=self.folder, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *args):
        return subprocess.run(self.command(*args), env=self.env, cwd=self.folder, text=True, timeout=60,
                              capture_output=True, check=False)

    def begun(self) -> list[str]:
        """The names of what was begun since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return sorted(" ".join(line.split()[:-3]) for line in lines)

    def summary(self) -> dict:
        return json.loads((self.out / "summary.json").read_text())

    def wait_for(self, count):
        """Until *count* sequences were begun."""
        until = time.monotonic() + 20
        while not self.log.exists() or len(self.log.read_text().splitlines()) < count:
            assert time.monotonic() < until
            time.sleep(0.02)


@pytest.fixture
def tool(tmp_path):
    yield Tool(tmp_path)


def last(done) -> str:
    return done.stdout.splitlines()[-1]


def scratch(*pids) -> list[Path]:
    return [path for pid in pids for path in Path("/dev/shm").glob(f"daxfs-crash-{pid}-*")]


def children(pid) -> list[int]:
    """Processes whose parent is *pid*, but for the resource tracker of multiprocessing."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def gone(pids) -> bool:
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


# -- what it runs and says -------------------------------------------------------------------


def test_all_sets(tool):
    tool.jobs(one=["ok 5 a", "ok 1200 b"], two=["ok 7 a"], three=["ok a"] * 3)
    done = tool.run("--three", "2", "--random", "3", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    # Of the length-one set a tenth, at least one, under each of the two other models.
    lines = tool.log.read_text().splitlines()
    assert sorted(line.split()[-2] for line in lines) == ["byte"] + ["cache_line"] * 8 + ["page"]
    assert {line.split()[-3] for line in lines if "random" in line} == {"all"}
    assert {line.split()[-3] for line in lines if "random" not in line} == {"last"}
    found = tool.summary()
    assert last(done) == f"{found['images']:,} images, 0 violations"
    assert [(row["set"], row["sequences"]) for row in found["sets"]] == [
        ("one", 2), ("two", 1), ("three", 2), ("random", 3), ("granularity", 2)]
    assert found["pairs"] == [{"first": "rename", "second": "unlink", "images": 7, "violations": 0}]
    assert found["costs"] == [{"kind": "useless flush", "site": "dir.py:1 [add] <b>", "count": 20}]
    assert "dir.py:1 [add] <b>" in done.stdout and "useless flush" in done.stdout


def chosen(*words) -> list[str]:
    return [job.sequence.name for job in crash_sweep.choose(crash_sweep.arguments(words))]


def test_options_choose(tool, monkeypatch):
    tool.jobs(one=[f"ok {n}" for n in range(40)], two=["ok 3", "ok 33"])
    for name, value in tool.env.items():
        monkeypatch.setenv(name, value)
    first = chosen("--set", "one", "--sample", "10%", "--seed", "5")
    assert len(first) == 4 == len(set(first))
    assert chosen("--set", "one", "--sample", "0.1", "--seed", "5") == first
    assert chosen("--set", "one", "--sample", "10%", "--seed", "6") != first
    assert chosen("--set", "one,two", "--match", "ok 3") == ["ok 3"] * 2    # a full name is no part of others
    assert len(chosen("--set", "one,two", "--match", "k 3")) == 11 + 2
    args = crash_sweep.arguments(("--limit", "9"))
    assert {job.limit for job in crash_sweep.choose(args)} == {9}
    quick = crash_sweep.arguments(("--quick",))
    assert quick.time < 120 and quick.fresh and quick.out != crash_sweep.OUT
    assert set(quick.limits) == set(sweep.SETS) and max(quick.limits.values()) == crash_sweep.QUICK_LIMIT
    assert crash_sweep.replay_command(quick) == ["tools/crash_sweep.py", "--seed", "0", "--ops", "20"]
    with pytest.raises(sweep.SweepError, match="no sequence"):
        chosen("--set", "one", "--match", "nothing")


@pytest.mark.parametrize("words", ["--set four", "--sample 0", "--jobs 0", "--limit -1"])
def test_wrong_options(words, capsys):
    with pytest.raises(SystemExit) as caught:
        crash_sweep.arguments(words.split())
    assert caught.value.code == 2 and words.split()[0] in capsys.readouterr().err


def test_every_set_gets_its_share():
    jobs = [sweep.Job("one", None, 1) for _ in range(10)] + [sweep.Job("two", None, 1) for _ in range(90)]
    ordered = sweep.spread(jobs, 1, lambda job: 3.0 if job.set == "one" else 1.0)
    assert len(set(ordered)) == 100
    assert [job.set for job in ordered[:20]].count("one") == 5
    assert sweep.spread(jobs, 1, sweep.Job.guess) == sweep.spread(jobs, 1, sweep.Job.guess)


def test_recording(tool):
    (tool.folder / "file").write_text("12!45")
    done = tool.run("--log", str(tool.folder / "file"), "--jobs", "2")
    assert (done.returncode, last(done)) == (1, "5 images, 1 violation")
    assert "ops:     op=mkdir name=d" in done.stdout and f"--jobs 2 --log {tool.folder}/file" in done.stdout


def test_time_is_kept_and_spread_over_the_sets(tool):
    tool.jobs(one=[f"slow 1 {n}" for n in range(50)], two=[f"slow 1 two {n}" for n in range(50)])
    began = time.monotonic()
    done = tool.run("--set", "one,two", "--time", "2", "--jobs", "2")
    assert done.returncode == 0 and time.monotonic() - began < 6
    names = tool.begun()
    twos = sum("two" in name for name in names)
    assert 2 <= len(names) < 40 and abs(2 * twos - len(names)) <= 2
    assert f"time over: {100 - len(names)} sequences are left, the same command goes on" in done.stdout


# -- violations ------------------------------------------------------------------------------


def test_violation(tool):
    tool.jobs(one=["ok 2 a", "bad 3 it's"])
    done = tool.run("--set", "one", "--seed", "4")
    assert (done.returncode, last(done)) == (1, "5 images, 1 violation")
    for text in ("violation: bad 3 it's", "seed:    4", "b is <gone> & [away]", "line 0x40 missing",
                 "minimal: rename a b"):
        assert text in done.stdout
    (again,) = re.findall(r"again: +tools/crash_sweep.py (.*)", done.stdout)
    tool.begun()
    done = subprocess.run([sys.executable, "-P", str(TOOL), *shlex.split(again)], env=tool.env, text=True,
                          cwd=tool.folder, timeout=60, capture_output=True, check=False)
    assert (done.returncode, last(done), tool.begun()) == (1, "3 images, 1 violation", ["bad 3 it's"])
    # What was found once is not run again, and not forgotten.
    done = tool.run("--set", "one", "--seed", "4")
    assert (done.returncode, last(done), tool.begun()) == (1, "5 images, 1 violation", [])


class Markup(html.parser.HTMLParser):
    """Checks that tags are closed in order, and gathers the text and what is referred to."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.links = [], "", []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page(tool):
    tool.jobs(one=["bad 3 <script>&"], two=["ok 9 a", "bad 9 b", "die c"])
    done = tool.run("--set", "one,two", "--json")
    assert json.loads(done.stdout) == tool.summary()
    line = "21 images, 2 violations, 1 sequence failed"
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == line
    text = (tool.out / "summary.html").read_text()
    page = Markup()
    page.feed(text)
    page.close()
    assert page.open == [] and page.links == [] and "url(" not in text and "<script" not in text
    for part in (line, "bad 3 <script>&", "b is <gone> & [away]", "dir.py:1 [add] <b>",
                 "killed by SIGSEGV"):
        assert part in page.text
    assert '<td class="hit" title="1 violations">18</td>' in text


# -- going on --------------------------------------------------------------------------------


def test_resume_after_a_torn_line(tool):
    tool.jobs(one=["ok 1 a", "ok 2 b", "ok 4 c"])
    tool.run("--set", "one", "--jobs", "1")
    tool.begun()
    results = tool.out / "results.jsonl"
    whole = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(b"".join(whole[:2]) + whole[2][:-40])
    done = tool.run("--set", "one", "--jobs", "1")
    assert len(tool.begun()) == 1 and last(done) == "7 images, 0 violations"
    assert sorted(results.read_bytes().splitlines(keepends=True)) == sorted(whole)


def test_results_count_for_the_same_code(tool):
    tool.jobs(one=["ok 1 a"])
    for args in ([], ["--fresh"]):
        tool.run("--set", "one", *args)
        assert tool.begun() == ["ok 1 a"], args
    tool.run("--set", "one")
    assert tool.begun() == []
    other = tool.folder / "standin.py"
    other.write_text((Path(__file__).parent / "standin.py").read_text() + "\n# other code\n")
    tool.env["PYTHONPATH"] = str(tool.folder)
    tool.run("--set", "one")
    assert tool.begun() == ["ok 1 a"]
    assert len((tool.out / "results.jsonl").read_text().splitlines()) == 1     # the old ones are dropped


def test_key_has_all_that_a_result_depends_on():
    job = sweep.Job("one", standin.Sequence("a", "tree", (("unlink", "b"),), ("nt",)), 48)
    fields = [("limit", 47), ("points", "all"), ("granularity", "byte")]
    fields += [("sequence", job.sequence._replace(**{name: "c"})) for name in standin.Sequence._fields]
    jobs = [job] + [dataclasses.replace(job, **{name: value}) for name, value in fields]
    keys = {sweep.Parameters().key(job, "1") for job in jobs}
    keys |= {sweep.Parameters(seed=1).key(job, "1"), sweep.Parameters(nested=1).key(job, "1"),
             sweep.Parameters().key(job, "2")}
    assert len(keys) == len(jobs) + 3


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_stopped_and_gone_on(tool, number, status):
    tool.jobs(one=[f"slow 1 {n}" for n in range(4)] + ["hang 1 a", "hang 1 b"])
    # The shorter ones first: how long they take is known.
    tool.out.mkdir()
    times = {f"slow 1 {n} [cache_line]": 9.0 for n in range(4)}
    (tool.out / "timings.json").write_text(json.dumps(times))
    process = tool.start("--set", "one", "--jobs", "2")
    tool.wait_for(6)
    workers = children(process.pid)
    assert len(workers) == 2 and len(scratch(*workers)) == 4     # of the engine, and stderr
    began = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == status and time.monotonic() - began < 5
    assert gone(workers) and scratch(*workers) == []
    if number != signal.SIGKILL:
        assert out.splitlines()[-1] == "4 images, 0 violations"
        assert "interrupted: 2 sequences are left" in out
    tool.begun()
    tool.jobs(one=[f"slow 1 {n}" for n in range(4)] + ["ok 1 c"])
    assert last(tool.run("--set", "one")) == "5 images, 0 violations"
    assert tool.begun() == ["ok 1 c"]


def test_scratch_of_the_dead_is_removed_at_the_start(tool):
    child = subprocess.Popen(["true"])
    child.wait()
    dead = Path(f"/dev/shm/daxfs-crash-{child.pid}-7")
    alive = Path(f"/dev/shm/daxfs-crash-{os.getpid()}-7")
    dead.touch()
    alive.touch()
    tool.jobs(one=["ok a"])
    try:
        tool.run("--set", "one")
        assert not dead.exists() and alive.exists()
    finally:
        alive.unlink()


def test_two_at_once(tool):
    tool.jobs(one=["hang a"])
    process = tool.start("--set", "one")
    tool.wait_for(1)
    done = tool.run("--set", "one")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert done.returncode == 2 and "another sweep" in done.stderr


# -- workers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name, text", [("die a", "killed by SIGSEGV"), ("raise a", "no such thing"),
                                        ("hang a", "no end after 1 s")])
def test_failed_worker(tool, name, text):
    tool.jobs(one=["ok 1 a", name, "ok 2 b", "ok 4 c"])
    done = tool.run("--set", "one", "--jobs", "1", "--patience", "1")
    assert done.returncode == 2 and text in done.stdout
    assert last(done) == "7 images, 0 violations, 1 sequence failed"
    assert "--match " + shlex.quote(name) in done.stdout
    tool.begun()
    done = tool.run("--set", "one", "--patience", "1")
    assert done.returncode == 2 and tool.begun() == [name]     # no result: it is tried again


def test_too_many_failures(tool):
    tool.jobs(one=[f"raise {n}" for n in range(60)])
    done = tool.run("--set", "one", "--jobs", "1")
    assert done.returncode == 2 and "too many failures: 40 sequences are left" in done.stdout
    assert last(done) == "0 images, 0 violations, 20 sequences failed"
