"""A run's curves for TensorBoard, beside its own files (logger=tensorboard)."""

import time
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from resrepro.runs.run_directory import Row

TAGS = {
    "error/train": "train_error",
    "error/test": "test_error",
    "loss/train": "train_loss",
    "loss/test": "test_loss",
    "learning_rate": "learning_rate",
}


class Events:
    """An event file that says what metrics.csv says: a point a row, errors in percent.

    A process writes it anew from the rows that its run goes on from, so that no point is there
    twice, and after a kill none that the run has not.

    Args:
        folder: where it lies, alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: SummaryWriter | None = None
        self.written = 0

    def write(self, rows: Sequence[Row]) -> None:
        """Adds the rows that are not there yet."""
        if self.writer is None or len(rows) < self.written:
            self._begin(rows[-1].seconds if rows else 0.0)
        assert self.writer is not None
        for row in rows[self.written :]:
            for tag, column in TAGS.items():
                value, at = getattr(row, column), self.epoch + row.seconds
                self.writer.add_scalar(tag, value, row.iteration, at)
        self.written = len(rows)
        self.writer.flush()

    def close(self) -> None:
        """Ends the writer's thread."""
        if self.writer is not None:
            self.writer.close()
        self.writer, self.written = None, 0

    def _begin(self, seconds: float) -> None:
        """Begins an empty file; a TensorBoard that shows the old one forgets its points."""
        self.close()
        for file in self.folder.glob("events.out.tfevents.*"):
            file.unlink()
        self.writer = SummaryWriter(str(self.folder), purge_step=0)
        self.epoch = time.time() - seconds
