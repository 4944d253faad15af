# SPDX-License-Identifier: MIT
"""L3: what a page fault becomes: the PMD/PTE decision and its counters."""
