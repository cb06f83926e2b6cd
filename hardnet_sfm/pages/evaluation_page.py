"""The page about an evaluation on landmarks, on patches, or on photos of known geometry."""

from __future__ import annotations

from pathlib import Path

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.workspace import read_json
from hardnet_sfm.pages.landmark_charts import landmarks_data
from hardnet_sfm.pages.page import Kind, write_page
from hardnet_sfm.pages.score_charts import scores_data
from hardnet_sfm.resources import Resources


def evaluation_page(
    results: Path, target: Path, images: Path | None = None, resources: Resources | None = None
) -> None:
    """Writes the page about a file from `evaluate --json`, for any data set.

    Args:
        results: the .json file.
        target: the .html file to write.
        images: for an evaluation on landmarks, the data set or the folder of its photos; the page then shows the photos
            found.
        resources: threads and device to use.

    Raises:
        HardnetSfmError: the file is missing or is something else, or the page cannot be written.
        UsageError: photos are given for an evaluation that does not search photos.
    """
    table = read_json(results)
    try:
        title = f"{table['data_set']}: evaluation"
        kind: Kind = "scores" if "measures" in table else "landmarks"
        if kind == "scores" and images is not None:
            raise UsageError(f"--images has no effect on the page about {results}", "Leave it out.")
        threads = (resources or Resources()).threads
        data = scores_data(table) if kind == "scores" else landmarks_data(table, images, threads)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise HardnetSfmError(
            f"{results}: not what `evaluate --json` writes: {what}",
            "Make it with `hardnet-sfm evaluate ... --json`.",
        ) from error
    write_page(target, title, kind, data)
