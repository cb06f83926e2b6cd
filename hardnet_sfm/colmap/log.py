"""Where COLMAP's and Ceres' own chatter goes: into files, not over the user's terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pycolmap

_FILES = "colmap.log."  # glog appends the time of the run and the process id


@contextmanager
def native_log(folder: Path | None) -> Iterator[None]:
    """COLMAP's log goes to a file in `folder` (made if missing) while the block runs, or nowhere without a folder."""
    logging = pycolmap.logging
    before = logging.alsologtostderr, logging.stderrthreshold, logging.minloglevel
    logging.alsologtostderr, logging.stderrthreshold = False, logging.FATAL.value
    if folder is None:
        logging.minloglevel = logging.FATAL.value
    else:
        folder.mkdir(parents=True, exist_ok=True)
        logging.set_log_destination(logging.INFO, folder / _FILES)
        for level in (logging.WARNING, logging.ERROR):
            logging.set_log_destination(level, "")  # they are in the file for INFO as well
    try:
        yield
    finally:
        logging.alsologtostderr, logging.stderrthreshold, logging.minloglevel = before
        if folder is not None:
            logging.set_log_destination(logging.INFO, "")
