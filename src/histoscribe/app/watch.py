"""Who watches the samples while others prepare them: bars, fed from what the workers note."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from histoscribe.app.cohort import SampleTask
from histoscribe.app.console import Bars, Voice

LOOK_EVERY_S = 0.5


@contextmanager
def watch(tasks: Sequence[SampleTask], voice: Voice) -> Iterator[None]:
    """Show how far each sample is, as its worker notes it in the study; nothing where nobody looks.

    Args:
        tasks: What is under way.
        voice: Where the bars go.
    """
    if not voice.is_watched:
        yield
        return
    is_over = threading.Event()

    def look(show: Bars) -> None:
        while not is_over.wait(LOOK_EVERY_S):
            for task in tasks:
                progress = task.workspace.read_progress(task.run)
                show(task.sample.sample, progress.get("done"), progress.get("total"))

    with voice.bars() as show:
        watcher = threading.Thread(target=look, args=(show,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()
