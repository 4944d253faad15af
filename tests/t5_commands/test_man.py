# SPDX-License-Identifier: MIT
"""The manual pages: they are well formed, and name every option, command and mount option there is."""

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from daxfs import emulate
from daxfs.cli import fsck, main, mkfs, mount
from daxfs.fuse import options

MAN = Path(__file__).resolve().parents[2] / "docs/man"
PAGES = {"daxfs.1": main.command, "mkfs.daxfs.8": mkfs.command, "fsck.daxfs.8": fsck.command,
         "mount.daxfs.8": mount.command}  # fmt: skip


def plain(page: str) -> str:
    """The page's source without macros' names, so that ``Fl Fl json`` and ``--json`` look alike."""
    text = (MAN / page).read_text()
    text = re.sub(r"\bFl Fl (?=\w)", "--", text)
    text = re.sub(r"\bFl (?=\w)", "-", text)
    return re.sub(r"\\e", r"\\", text)


def switches(command: click.Command) -> set[str]:
    with click.Context(command) as ctx:
        return {word for param in command.get_params(ctx) if isinstance(param, click.Option)
                for word in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("page", PAGES)
def test_lint(page):
    if not shutil.which("mandoc"):
        pytest.skip("no mandoc")
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "style", page], cwd=MAN, capture_output=True,
                          text=True, check=False)
    # Whether the pages that are referred to are installed says nothing of this one.
    lines = [line for line in (done.stdout + done.stderr).splitlines()
             if "referenced manual not found" not in line and "outdated mandoc.db" not in line]
    assert lines == []


@pytest.mark.parametrize("page", PAGES)
def test_every_option_is_in_its_page(page):
    text = plain(page)
    for switch in switches(PAGES[page]):
        # Short ones may stand together: "-n , y" is written `Fl n , y`.
        short = len(switch) == 2 and re.search(rf"^\.It.*[ -]{switch[1]}\b", text, re.MULTILINE)
        assert re.search(rf"(?<![\w-]){re.escape(switch)}(?![\w-])", text) or short, switch


def test_every_subcommand_and_its_options():
    text = plain("daxfs.1")
    with click.Context(main.command) as ctx:
        for name in main.command.list_commands(ctx):
            assert f"Cm {name}" in text
            for switch in switches(main.command.get_command(ctx, name)):
                assert switch in text, f"{name} {switch}"


def test_every_mount_option_and_value():
    text = plain("mount.daxfs.8")
    names = {*options.FLAGS, *options.COUNTS, *options.SIZES, *options.IDS, *options.PATHS,
             "fsname", "subtype", "remount", "emulate", "ro", "rw", "relatime",
             "noatime", "strictatime", "nodiratime", "lazytime", "defaults", "debug", "raw",
             "revoke"}  # fmt: skip
    for name in names | set(options.CHOICES):
        assert re.search(rf"\b{name}\b", text), name
    for name, values in options.CHOICES.items():
        line = next(line for line in text.splitlines() if line.startswith(f".It Cm {name}="))
        assert all(re.search(rf"\b{re.escape(value)}\b", line) for value in values), line
    assert all(re.search(rf"^\.Cm {name}\b", text, re.MULTILINE) for name in emulate.known())
