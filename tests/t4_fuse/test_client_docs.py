# SPDX-License-Identifier: MIT
"""The examples of docs/client.md are run as they stand there, on a file of tmpfs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from daxfs import client

TEXT = (Path(__file__).resolve().parents[2] / "docs/client.md").read_text()
EXAMPLES = dict(re.findall(r"^```(python|c)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


def run(*words, cwd):
    done = subprocess.run([str(word) for word in words], cwd=cwd, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_python(tmp_path):
    (tmp_path / "x.py").write_text(EXAMPLES["python"])
    said = run(sys.executable, "-P", "x.py", "data", cwd=tmp_path)
    assert "not a file of a daxfs mount" in said
    there = np.fromfile(tmp_path / "data", "<f8")
    wanted = np.arange(1000.0)
    wanted[10:20] = 1
    wanted[500:] += 1
    assert (there == wanted).all()


@pytest.mark.parametrize("preload", [False, True])
def test_c(tmp_path, preload):
    (tmp_path / "x.c").write_text(EXAMPLES["c"])
    (command,) = re.findall(r"`(cc x\.c [^`]*)`", TEXT)
    for name, value in (("INCLUDE", client.get_include()), ("LIBRARY", client.LIBRARY),
                        ("FOLDER", client.LIBRARY.parent)):  # fmt: skip
        command = command.replace(name, str(value))
    run(*command.split(), "-o", "x", "-Wall", "-Werror", "-Wno-unused-parameter", cwd=tmp_path)
    (tmp_path / "data").write_bytes(bytes(4096))
    words = ["env", f"LD_PRELOAD={client.PRELOAD}"] if preload else []
    assert "not a file of a daxfs mount" in run(*words, "./x", "data", cwd=tmp_path)
    assert (tmp_path / "data").read_bytes()[:106] == b"hello".ljust(100, b"\0") + b"world\0"
