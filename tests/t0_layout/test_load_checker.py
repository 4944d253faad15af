# SPDX-License-Identifier: MIT
"""The judge of the crash tests must see damage: each test tampers with a good tree and wants a complaint.

Runs on a directory of pytest's, never on daxfs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import load
import pytest
from load_model import Model, Node, torn_write

LOAD = Path(load.__file__)


def run_load(root, log, seed=5, ops=600):
    return subprocess.run([sys.executable, str(LOAD), "run", "--root", str(root), "--log", str(log),
                           "--seed", str(seed), "--ops", str(ops)],
                          check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture
def loaded(tmp_path):
    root, log = tmp_path / "root", tmp_path / "log"
    root.mkdir()
    done = run_load(root, log)
    assert done.returncode == 0, done.stderr
    assert load.judge(root, log) == []
    return root, log


def pick(root, log, wanted):
    """Path of the first node in the model for which wanted(node) holds."""
    for path, node in load.History(log).model.walk():
        if wanted(node):
            return root / path
    raise AssertionError("the load made no such node")


def a_file(node):
    return node.kind == "file" and len(node.data) > 100 and node.nlink == 1


def complaint(loaded, text):
    found = load.judge(*loaded)
    assert any(text in line for line in found), found


def test_dropped_file(loaded):
    pick(*loaded, a_file).unlink()
    complaint(loaded, "missing (file)")


def test_extra_name(loaded):
    (loaded[0] / "intruder").write_bytes(b"")
    complaint(loaded, "should not be (file)")


def test_changed_byte(loaded):
    path = pick(*loaded, a_file)
    with open(path, "r+b") as file:
        byte = os.pread(file.fileno(), 1, 50)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), 50)
    complaint(loaded, "content differs first at byte 50, 1 bytes")


def test_lost_tail(loaded):
    path = pick(*loaded, a_file)
    os.truncate(path, path.stat().st_size - 1)
    complaint(loaded, "size")


def test_changed_mode(loaded):
    path = pick(*loaded, a_file)
    path.chmod(0o4711)
    complaint(loaded, "mode 4711")


def test_broken_hard_link(loaded):
    path = pick(*loaded, lambda node: node.kind == "file" and node.nlink > 1)
    data, mode = path.read_bytes(), path.stat().st_mode
    path.unlink()
    path.write_bytes(data)
    path.chmod(mode)
    complaint(loaded, "not the same inode")


def test_extra_hard_link_count(loaded, tmp_path):
    os.link(pick(*loaded, a_file), tmp_path / "outside")
    complaint(loaded, "link count 2")


def test_changed_target(loaded):
    path = pick(*loaded, lambda node: node.kind == "link")
    path.unlink()
    path.symlink_to("elsewhere")
    complaint(loaded, "target 'elsewhere'")


def test_lost_xattr(loaded):
    path = pick(*loaded, lambda node: node.kind in ("file", "dir") and node.xattrs)
    os.removexattr(path, os.listxattr(path)[0])
    complaint(loaded, "xattrs")


def test_broken_mtime_promise(loaded):
    path = pick(*loaded, lambda node: node.kind == "file" and node.mtime is not None)
    os.utime(path, ns=(7, 7))
    complaint(loaded, "mtime 7")


def test_type_changed(loaded):
    path = pick(*loaded, a_file)
    path.unlink()
    path.mkdir()
    complaint(loaded, "is a dir, should be a file")


def test_wrong_errno_in_log(loaded):
    lines = loaded[1].read_text().splitlines()
    record = json.loads(lines[-1])
    record["r"] = 5
    loaded[1].write_text("\n".join(lines[:-1] + [json.dumps(record)]) + "\n")
    complaint(loaded, "errno 5")


def cut_before_end(log):
    """Take the last end record away: as if the file system had died in that operation."""
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:-1]) + "\n")
    return json.loads(lines[-2])["op"]


def begin_mkdir(log, number):
    with open(log, "a") as file:
        op = {"op": "mkdir", "path": f"never-made-{number}", "mode": 0o755}
        file.write(json.dumps({"n": number, "op": op}) + "\n")


@pytest.mark.parametrize("seed", range(8))
def test_in_flight_may_be_done(tmp_path, seed):
    root, log = tmp_path / "root", tmp_path / "log"
    root.mkdir()
    assert run_load(root, log, seed, 150 + seed).returncode == 0
    cut_before_end(log)
    assert load.judge(root, log) == []
    # The log now says how it ended, so the load can go on, and is judged again.
    assert run_load(root, log, seed + 100, 150).returncode == 0
    assert load.judge(root, log) == []


def test_in_flight_may_be_undone_but_nothing_else(loaded):
    root, log = loaded
    begin_mkdir(log, 10**6)
    assert load.judge(root, log) == []
    begin_mkdir(log, 10**6 + 1)
    pick(root, log, a_file).unlink()
    complaint(loaded, "in flight")


def test_torn_overwrite_is_adopted(tmp_path):
    """Half old, half new bytes are what a killed copy in place leaves; the load goes on from them."""
    root, log = tmp_path / "root", tmp_path / "log"
    root.mkdir()
    old, new = load.content(1, 8192), load.content(2, 8192)
    steps = [{"op": "create", "path": "f", "mode": 0o644},
             {"op": "write", "path": "f", "how": "pwrite", "pos": 0, "len": 8192, "seed": 1}]
    tail = {"op": "write", "path": "f", "how": "pwrite", "pos": 0, "len": 8192, "seed": 2}
    lines = []
    for number, op in enumerate(steps, 1):
        lines += [json.dumps({"n": number, "op": op}), json.dumps({"n": number, "r": 0})]
    lines.append(json.dumps({"n": 3, "op": tail}))
    log.write_text("\n".join(lines) + "\n")
    (root / "f").write_bytes(new[:4096] + old[4096:])
    (root / "f").chmod(0o644)
    assert load.judge(root, log) == []
    assert load.judge(root, log) == []
    assert bytes(load.History(log).model.find("f").data) == new[:4096] + old[4096:]


def test_torn_write_rules():
    node = Node("file", 0o644, b"a" * 100)
    op = {"op": "write", "how": "pwrite", "pos": 10, "len": 50, "seed": 3}
    new = load.content(3, 50)
    assert torn_write(op, node, b"a" * 10 + new[:20] + b"a" * 70)
    assert not torn_write(op, node, b"b" + b"a" * 9 + new + b"a" * 40)
    assert not torn_write(op, node, b"a" * 10 + bytes(50) + b"a" * 40)
    growing = {"op": "write", "how": "append", "pos": 0, "len": 50, "seed": 3}
    assert not torn_write(growing, node, b"a" * 100 + new[:20] + bytes(30))
    assert torn_write(growing, node, b"a" * 100)


def test_torn_write_split_by_the_kernel():
    """A buffered write may have grown the file to a page boundary, with all bytes up to there."""
    node = Node("file", 0o644, b"a" * 100)
    op = {"op": "write", "how": "pwrite", "pos": 4000, "len": 9000, "seed": 3}
    head, new = b"a" * 100 + bytes(3900), load.content(3, 9000)
    assert torn_write(op, node, head + new[:96])
    assert torn_write(op, node, head + new[:96 + 4096])
    assert not torn_write(op, node, head + new[:97])
    assert not torn_write(op, node, head + bytes(96))
    assert not torn_write(op, node, b"a" * 100 + bytes(3899) + b"x" + new[:96])
    assert not torn_write({**op, "how": "direct"}, node, head + new[:96])


def model_of(**files):
    model = Model()
    for path, data in files.items():
        model.apply({"op": "create", "path": path, "mode": 0o644})
        model.find(path).data[:] = data
    return model


def test_what_fallocate_does_to_the_bytes():
    for mode, pos, length, want in (("allocate", 50, 10, b"a" * 100),
                                    ("allocate", 90, 20, b"a" * 100 + bytes(10)),
                                    ("keep", 90, 20, b"a" * 100), ("punch", 90, 20, b"a" * 90 + bytes(10)),
                                    ("punch", 200, 20, b"a" * 100), ("zero", 90, 20, b"a" * 90 + bytes(20)),
                                    ("zero", 200, 5, b"a" * 100 + bytes(105)),
                                    ("zero_keep", 90, 20, b"a" * 90 + bytes(10))):
        model = model_of(f=b"a" * 100)
        model.apply({"op": "fallocate", "path": "f", "mode": mode, "pos": pos, "len": length})
        assert bytes(model.find("f").data) == want, (mode, pos, length)


def test_torn_fallocate_and_copy():
    model = model_of(f=b"a" * 100, g=b"g" * 9000)
    node = model.find("f")
    zero = {"op": "fallocate", "path": "f", "mode": "zero", "pos": 50, "len": 100}
    assert torn_write(zero, node, b"a" * 60 + bytes(40), model.effect(zero))
    assert not torn_write(zero, node, b"a" * 40 + bytes(60), model.effect(zero))
    assert not torn_write(zero, node, b"a" * 60 + bytes(80), model.effect(zero))
    punch = {**zero, "mode": "punch"}
    assert not torn_write(punch, node, b"a" * 50 + bytes(51), model.effect(punch))
    copy = {"op": "copy", "src": "g", "path": "f", "from": 10, "pos": 200, "len": 5000}
    assert torn_write(copy, node, b"a" * 100 + bytes(100) + b"g" * 77, model.effect(copy))
    assert not torn_write(copy, node, b"a" * 100 + bytes(101) + b"g" * 77, model.effect(copy))
    assert not torn_write(copy, node, b"a" * 100 + bytes(100), model.effect(copy))


def test_same_seed_gives_the_same_load(tmp_path):
    logs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert run_load(tmp_path / name, tmp_path / f"{name}.log", 9, 300).returncode == 0
        lines = [json.loads(line) for line in (tmp_path / f"{name}.log").read_text().splitlines()]
        logs.append([line["op"] for line in lines if "op" in line])
    assert logs[0] == logs[1]


def test_model_of_rename_over_a_hard_link():
    model = Model()
    for op in ({"op": "create", "path": "a", "mode": 0o600}, {"op": "link", "src": "a", "dst": "b"},
               {"op": "create", "path": "c", "mode": 0o600}, {"op": "rename", "src": "c", "dst": "b"}):
        model.apply(op)
    assert sorted(path for path, _ in model.walk()) == ["a", "b"]
    assert model.find("a").nlink == 1 and model.find("b").nlink == 1
