# SPDX-License-Identifier: MIT
"""daxfs run: start a program so that its own mappings of DAX files are observed (docs/client.md).

Limits: finds the program, says what can't be observed, and becomes it with the preload shim of daxfs.client.
Exit status as of env(1): 125 for our own failures, 126 and 127 where the program can't be run or found.
"""

import errno
import os
import shutil
import struct

import click

from daxfs.cli.common import say

PROG = "daxfs run"
MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "ppc64le": 21, "s390x": 22}


@click.command("run", short_help="Run a program, its mappings observed.",
               context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--fault", type=click.Choice(["kernel", "user"]), default="kernel", show_default=True,
              help="Who answers page faults.")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- PROGRAM [ARG]...")
def command(fault, program):
    """Run PROGRAM so that fsync and msync of files that it maps directly write
    back what it stored, and not all. It and its children need not know; files of
    other file systems are left alone. The exit status is PROGRAM's.
    """
    from daxfs import client

    if fault == "user" and (reason := client.why_no_user_faults()):
        say(PROG, f"--fault user: {reason}; use --fault kernel")
        return 125
    if not client.PRELOAD.exists() or any(c in str(client.PRELOAD) for c in " :"):
        say(PROG, f"{client.PRELOAD}: can't be preloaded: it is missing, or has a blank or colon in its path")
        return 125
    path = shutil.which(program[0]) or program[0]
    if "/" not in path:
        say(PROG, f"{path}: {os.strerror(errno.ENOENT)}")
        return 127
    reason = why_not(path)
    if reason:
        say(PROG, f"{path}: {reason}; its mappings are not observed")
    preload = [str(client.PRELOAD), *filter(None, [os.environ.get("LD_PRELOAD")])]
    environment = {**os.environ, "LD_PRELOAD": ":".join(preload), "DAXFS_FAULT": fault}
    try:
        os.execve(path, program, environment)
    except OSError as exc:
        if exc.errno == errno.ENOEXEC:  # a script without a first line: sh runs it, as execvp(3) does
            return _shell(path, program, environment)
        say(PROG, f"{program[0]}: {exc.strerror}")
        return 127 if exc.errno == errno.ENOENT else 126


def _shell(path: str, program, environment) -> int:
    try:
        os.execve("/bin/sh", ["sh", path, *program[1:]], environment)
    except OSError as exc:
        say(PROG, f"/bin/sh: {exc.strerror}")
        return 126


def why_not(path: str, depth: int = 0) -> str:
    """Why the loader will not preload into the program at *path*; "" where it will, or nobody can tell."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
            st = os.fstat(file.fileno())
    except (OSError, ValueError):  # ValueError: a script names an interpreter with a NUL in it
        return ""  # exec says so
    if head[:2] == b"#!" and depth < 4:
        words = head[2:].split(b"\n", 1)[0].split()
        return why_not(os.fsdecode(words[0]), depth + 1) if words else ""
    if _gains_privileges(path, st):
        return "runs with other privileges (setuid, setgid or capabilities), so the loader preloads nothing"
    return _why_not_elf(head)


def _gains_privileges(path: str, st: os.stat_result) -> bool:
    if st.st_mode & 0o4000 and st.st_uid != os.getuid():
        return True
    if st.st_mode & 0o2000 and st.st_gid != os.getgid():
        return True
    try:
        return os.getuid() != 0 and bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _why_not_elf(head: bytes) -> str:
    """What the ELF header says: another machine's, or no interpreter, which would do the preloading."""
    if head[:4] != b"\x7fELF" or len(head) < 64:
        return ""
    if head[4] != 2 or struct.unpack_from("<H", head, 18)[0] != MACHINES.get(os.uname().machine, -1):
        return "is of another architecture than the shim"
    (start,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    kinds = [struct.unpack_from("<I", head, at)[0] for at in range(start, start + size * count, size or 1)
             if at + 4 <= len(head)]  # fmt: skip
    return "" if 3 in kinds else "is statically linked"  # PT_INTERP
