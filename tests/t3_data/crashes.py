# SPDX-License-Identifier: MIT
"""Power failures under a data path: recorded while it works, looked at afterwards.

The images are those of daxfs.testing: before each drain and when a step has returned. Limits: operations
of one thread, one after the other; a few images for each moment. tests/crash goes through more.
"""

import contextlib
import random

from daxfs._record import Recorder
from daxfs.testing.crash import Point, crash_points
from daxfs.testing.log import parse

PAGE = 4096
LIMIT = 4  # images for each moment that Media picks: nothing, everything, one line missing, one early


class Crashes:
    """Records what *io* stores between ``with`` and its end; then the judge of each step looks at the images.

    ``images``: how many were looked at.
    """

    def __init__(self, kit, io):
        self.kit, self.region, self.images = kit, io.fs.region, 0
        sb = io.fs.sb
        self._journal = range(sb.journal_pfn * PAGE, (sb.journal_pfn + sb.journal_pages) * PAGE)
        self._recorder, self._rng = Recorder(self.region), random.Random(1)
        self._judges: dict[int, tuple] = {}  # step: judges for when it has returned, and while it runs

    def __enter__(self) -> "Crashes":
        self._before = self.region.array.copy()
        self._recorder.__enter__()
        return self

    def __exit__(self, error, *_) -> None:
        self._recorder.close()
        if error is None:
            for point in crash_points(parse(self._recorder.take()), self._before):
                self._look(point)

    @contextlib.contextmanager
    def step(self, after, during=None):
        """What is done until the end is an operation; nothing is done between steps.

        after, during: called with a data path on each image of when it had returned, and of while it ran
        (None: these don't matter). They look after the last step, so they must not ask what changes.
        """
        number = self._recorder.begin("step")
        self._judges[number] = after, during
        yield
        self._recorder.end(number)

    def _look(self, point: Point) -> None:
        (number,) = point.in_flight or list(point.returned)[-1:]
        judge = self._judges[number][bool(point.in_flight)]
        if judge is None:
            return
        for delta, words in self._deltas(point.media).items():
            try:
                crashed = self.kit.on_image(point.media.sure, delta)
                judge(crashed)
                if not point.in_flight:
                    self.kit.fsck(crashed.fs)
            except Exception as wrong:
                wrong.add_note(f"power failure {point.what} in step {number}\n{words()}")
                raise
            self.kit.drop(crashed.fs)
            self.images += 1

    def _deltas(self, media) -> dict:
        """{what goes over the sure bytes: a function that describes it}.

        Besides what Media picks: a record without what it needs, and all that it needs without the record.
        """
        found = {tuple(image.delta): image.describe for image in media.images(LIMIT, self._rng)}
        *_, most = media.images(2, self._rng)  # nothing, everything
        for name, there in (("the journal alone", True), ("all but the journal", False)):
            chosen = tuple(run for run in most.delta if (run[0] in self._journal) == there)
            found.setdefault(chosen, lambda name=name: f"{name}, of all this:\n{most.describe()}")
        return found
