# SPDX-License-Identifier: MIT
"""kill -9 of the daemon under load: five rounds on each transport, more in ``make crash`` (tools/kill9.py).

A failing round prints the command that plays it again.
"""

import pytest
from crash_round import Plan, Round

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.transports]


def check(plan):
    report = Round(plan).run()
    text = "\n".join(report.complaints)
    assert not report.complaints, f"play it again: {plan.command()}\n{plan}\n{text}"
    assert report.kills >= len(plan.cycles) and report.operations > 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_under_load(seed, transport):
    check(Plan.draw(seed, replay_kill=False, transport=transport))


@pytest.mark.parametrize("seed", [4, 5])
def test_killed_again_during_replay(seed, transport):
    check(Plan.draw(seed, replay_kill=True, transport=transport))
