# SPDX-License-Identifier: MIT
"""daxfs: a FUSE file system with DAX-style direct access to persistent memory.

This package root imports nothing: the offline tools must run without pyfuse3
and trio. See docs/architecture.md for the layers (L0 to L5).
"""

__version__ = "0.1.0"
