# SPDX-License-Identifier: MIT
"""L4: programs' own mappings of DAX files, of which it is known what was stored (docs/client.md).

``map_file`` gives a numpy array; the C library below it (daxfs.h, libdaxfs.so) and the preload shim of
``daxfs run`` are in this folder. Limits: imports nothing of the daemon; the C library speaks to it.
"""

from pathlib import Path

from . import _client
from .mapping import MappedArray, map_file

__all__ = ["LIBRARY", "PRELOAD", "MappedArray", "get_include", "map_file", "msyncs", "why_no_user_faults"]

LIBRARY = Path(__file__).with_name("libdaxfs.so")
PRELOAD = Path(__file__).with_name("libdaxfs_preload.so")


def why_no_user_faults() -> str:
    """Why this process can't have its page faults answered by the daemon (fault=user); "": it can."""
    return _client.why_no_user_faults()


def msyncs() -> dict[str, int]:
    """Where the time of msync went in this process: ``count`` of write-backs of observed mappings, and ns of
    their phases ``wait``, ``scan``, ``flush`` and ``drain`` (docs/fsync.md)."""
    return _client.msyncs()


def get_include() -> str:
    """The folder of ``daxfs.h``, for a C compiler's ``-I``."""
    return str(Path(__file__).parent)
