# SPDX-License-Identifier: MIT
"""daxfs on an emulated NVDIMM: a guest of Debian's kernel in software emulation (docs/vm.md)."""
