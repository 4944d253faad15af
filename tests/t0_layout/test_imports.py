# SPDX-License-Identifier: MIT
"""Imports go down the layers of DESIGN section 2, or sideways inside a folder."""

import subprocess
import sys

import pytest
import tree

LAYERS = {
    "daxfs": 0, "daxfs.errors": 0, "daxfs.pfn": 0, "daxfs.layout": 0, "daxfs.latency": 0,
    "daxfs._emulate": 1, "daxfs._flush": 1, "daxfs._fsync": 1, "daxfs._iomap": 1, "daxfs._own": 1,
    "daxfs._record": 1,
    "daxfs._stores": 1, "daxfs._window": 1,
    "daxfs.emulate": 1, "daxfs.granularity": 1, "daxfs.pool": 1, "daxfs.region": 1, "daxfs.source": 1,
    "daxfs.testing": 1.5, "daxfs.meta": 2, "daxfs.data": 3, "daxfs.fault": 3, "daxfs.fuse": 4,
    "daxfs.client": 4, "daxfs.cli": 5,
}  # fmt: skip
FOLDERS = {
    "daxfs.testing",
    "daxfs.meta",
    "daxfs.data",
    "daxfs.fault",
    "daxfs.fuse",
    "daxfs.client",
    "daxfs.cli",
}
OFFLINE_CLI = ("mkfs", "fsck", "info", "common")
NO_FUSE = "import sys\nfor name in ('pyfuse3', 'trio'):\n    sys.modules[name] = None\n"


def unit(module: str) -> str:
    """The folder or top-level module that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2])


def allowed(importer: str, imported: str) -> bool:
    """May *importer* import *imported* (both modules of daxfs)?"""
    own, other = unit(importer), unit(imported)
    if own == other:
        return True
    low, high = LAYERS[other], LAYERS[own]
    both_files = own not in FOLDERS and other not in FOLDERS
    return low < high or (both_files and low == high)


@pytest.mark.parametrize("path", tree.SOURCES, ids=tree.module_of)
def test_imports_go_down(path):
    own = tree.module_of(path)
    assert unit(own) in LAYERS, f"{own}: say in this test which layer it belongs to"
    for name in tree.imports(path):
        if name.split(".")[0] == "daxfs" and name != own:
            assert unit(name) in LAYERS, f"{own} imports {name}, which there is not"
            assert allowed(own, name), f"{own} imports {name}: that is up or across"


@pytest.mark.parametrize("path", tree.SOURCES, ids=tree.module_of)
def test_only_fuse_knows_pyfuse3_and_trio(path):
    outside = {name.split(".")[0] for name in tree.imports(path)} & {"pyfuse3", "trio"}
    assert not outside or tree.module_of(path).startswith("daxfs.fuse."), outside


def test_the_import_reader_sees_all_forms():
    """The reader itself: relative, absolute, nested and c-imports, a folder's module by name."""
    found = tree.imports(tree.PACKAGE / "meta" / "fs.py")
    assert {"daxfs.meta.recover", "daxfs.layout", "daxfs.pfn", "daxfs.errors", "time"} <= found
    assert {"daxfs._flush", "libc.stdint", "daxfs.errors"} <= tree.imports(tree.PACKAGE / "_iomap.pyx")
    assert "daxfs._iomap" in tree.imports(tree.PACKAGE / "data" / "_dax_io.pyx")
    assert not allowed("daxfs.meta.fs", "daxfs.data.file_io") and not allowed("daxfs.data.x", "daxfs.fault.y")
    assert allowed("daxfs.fuse.ops", "daxfs.meta.fs") and not allowed("daxfs.region", "daxfs.meta.fs")


def test_offline_modules_work_without_pyfuse3():
    """All of meta and what is below it, and the offline commands; the names come from the tree."""
    names = sorted(m for m in tree.MODULES if LAYERS[unit(m)] <= 2)
    names += [f"daxfs.cli.{name}" for name in OFFLINE_CLI]
    assert len(names) > 20 and set(names) <= tree.MODULES, set(names) - tree.MODULES
    code = NO_FUSE + "".join(f"import {name}\n" for name in names)
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_block_works():
    blocked = [sys.executable, "-P", "-c", NO_FUSE + "import trio"]
    done = subprocess.run(blocked, capture_output=True, check=False)
    assert done.returncode != 0
