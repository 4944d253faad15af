# SPDX-License-Identifier: MIT
"""POSIX table: the same small cases run on a mount under test and on an oracle, and must agree.

Imports nothing of daxfs and needs the standard library alone (the command adds click and rich), so it runs
on any mount point of any file system: `python -m tests.posix MOUNTPOINT`.
"""
