# SPDX-License-Identifier: MIT
"""L2: what is on the media and how it changes (synchronous, one thread, no FUSE)."""
