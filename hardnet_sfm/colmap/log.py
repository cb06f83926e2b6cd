"""Redirects the logs of COLMAP and Ceres from the user's terminal into files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pycolmap

# glog appends the start time in seconds and the process id. The count keeps two logs of one second apart: glog cannot
# open the second one otherwise, and complains on the terminal.
_FILES, _COUNT = "colmap.log.", itertools.count()


@contextmanager
def native_log(folder: Path | None) -> Iterator[None]:
    """Writes COLMAP's log to a file in `folder` (made if missing) while the block runs.

    Without a folder it discards the log.
    """
    logging = pycolmap.logging
    before = logging.alsologtostderr, logging.stderrthreshold, logging.minloglevel
    logging.alsologtostderr, logging.stderrthreshold = False, logging.FATAL.value
    if folder is None:
        logging.minloglevel = logging.FATAL.value
    else:
        folder.mkdir(parents=True, exist_ok=True)
        logging.set_log_destination(logging.INFO, folder / f"{_FILES}{next(_COUNT)}.")
        for level in (logging.WARNING, logging.ERROR):
            logging.set_log_destination(level, "")  # the file for INFO has these messages as well
    try:
        yield
    finally:
        logging.alsologtostderr, logging.stderrthreshold, logging.minloglevel = before
        if folder is not None:
            logging.set_log_destination(logging.INFO, "")
