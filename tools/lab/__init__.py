# SPDX-License-Identifier: MIT
"""What the experiments in tools/ share (docs/laboratory.md); not installed.

``start`` finds the interpreter, ``arguments`` the options of all experiments, ``plan`` says what is measured,
``schedule`` goes through it in turns, ``store`` keeps samples, ``rigs`` mounts what is measured, ``worker``
makes dirty and times calls, ``table`` prints medians; ``fsync_cells`` and ``fsync_families`` are
fsync_sweep's. ``reading``, ``drawing`` and ``report`` are plot_sweep's: they know the files alone.
"""
