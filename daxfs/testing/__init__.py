# SPDX-License-Identifier: MIT
"""Crash testing for programs on persistent memory: what a power failure may leave, tried out.

Imports layers L0 and L1 only; daxfs's own tests and tools use it like anybody else.
"""
