# SPDX-License-Identifier: MIT
"""The sdist and the wheel made from it: complete, nothing stray in them, and what is installed works.

Limits: no network, so built with the tools of this environment; the sdist holds what is committed, as
`meson dist` takes it.
"""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = {"daxfs/client/libdaxfs.so", "daxfs/client/libdaxfs_preload.so"}
HEADERS = {"daxfs/client/daxfs.h"}
MEDIA = {"daxfs/media.toml"}
EXTENSIONS = ("daxfs._emulate", "daxfs._flush", "daxfs._fsync", "daxfs._iomap", "daxfs._own", "daxfs._record",
              "daxfs._stores", "daxfs._window", "daxfs.client._client",
              "daxfs.data._dax_io", "daxfs.data._serve", "daxfs.data._trace", "daxfs.data._tracker",
              "daxfs.data._transport",
              "daxfs.fault._baton", "daxfs.fault._decision", "daxfs.fault._entry", "daxfs.fault._handler",
              "daxfs.fault._observe")  # fmt: skip
COMMANDS = ("daxfs", "mkfs.daxfs", "fsck.daxfs", "mount.daxfs")
PAGES = ("man1/daxfs.1", "man8/fsck.daxfs.8", "man8/mkfs.daxfs.8", "man8/mount.daxfs.8")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")]


def run(*args, cwd, **env) -> str:
    """stdout of a command that must succeed; the tools beside this interpreter come first on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([str(arg) for arg in args], cwd=cwd, env={**os.environ, "PATH": path, **env},
                          capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(folder: str) -> set[str]:
    """Names of the committed files of *folder*."""
    return set(run("git", "ls-tree", "-r", "--name-only", "HEAD", folder, cwd=ROOT).split())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel): the sdist of the checkout, and the wheel of that sdist, unpacked elsewhere."""
    out, work = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("sdist")
    # Of a clone: meson renews the index, which would then be root's in a user's checkout.
    clone = tmp_path_factory.mktemp("clone")
    run("git", "clone", "-q", ROOT, clone, cwd="/")
    hook = "import mesonpy, sys; mesonpy.build_{}(sys.argv[1], {})"
    run(sys.executable, "-c", hook.format("sdist", None), out, cwd=clone)
    (sdist,) = out.glob("*.tar.gz")
    run("tar", "-xzf", sdist, cwd=work)  # not extractall: Debian 12's has no filter=, newer ones warn without
    (source,) = work.iterdir()
    # Not optimised: it is quicker to build, and what is in the wheel is the same.
    settings = {"setup-args": ["-Doptimization=0"]}
    run(sys.executable, "-c", hook.format("wheel", settings), out, cwd=source)
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The folder where pip has put the wheel."""
    target = tmp_path_factory.mktemp("target")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile",
        "--disable-pip-version-check", "--target", target, built[1], cwd=target)  # fmt: skip
    return target


def test_sdist_is_what_is_committed(built):
    with tarfile.open(built[0]) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    folders = {str(parent) for name in names for parent in Path(name).parents}
    assert names - folders == tracked(".") | {"PKG-INFO"}


def test_wheel_holds_modules_pages_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = wheel.namelist()
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    data = info.replace("dist-info", "data")
    package = {name for name in names if name.startswith("daxfs/")}
    assert LIBRARIES | HEADERS | MEDIA <= package
    package -= LIBRARIES | HEADERS | MEDIA
    native = {name for name in package if name.endswith(".so")}
    assert {name.split(".")[0].replace("/", ".") for name in native} == set(EXTENSIONS)
    assert package - native == {name for name in tracked("daxfs") if name.endswith((".py", ".pyi"))}
    assert {name for name in names if name.startswith(data)} == {f"{data}/data/man/{p}" for p in PAGES}
    assert {name.split("/")[0] for name in names} == {"daxfs", info, data}


@pytest.mark.parametrize("module", EXTENSIONS)
def test_compiled_modules_load(installed, module):
    code = f"import {module} as m; print(m.__file__)"
    assert run(sys.executable, "-c", code, cwd="/", PYTHONPATH=str(installed)).startswith(str(installed))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_start(installed, command):
    output = run(installed / "bin" / command, "--version", cwd="/", PYTHONPATH=str(installed))
    assert command in output and "0.1.0" in output
    assert (installed / "man" / next(p for p in PAGES if p.split("/")[1][:-2] == command)).stat().st_size


def test_not_built_for_this_cpu_alone():
    """Instruction sets are chosen at run time, so nothing may ask the compiler for the building machine's."""
    text = "".join((ROOT / name).read_text() for name in ("meson.build", "pyproject.toml", "Makefile"))
    assert "-march" not in text and "-mtune" not in text
