"""The command `report` writes an HTML page about a reconstruction, a training run or an evaluation."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.arrays import spread
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.fingerprints import inputs_fingerprint, matched_keypoints
from hardnet_sfm.files.outputs import check_page, write_page
from hardnet_sfm.files.patch_sets import read_patches
from hardnet_sfm.files.photo_checks import check_photos
from hardnet_sfm.files.photo_folders import PhotoFolder
from hardnet_sfm.files.stores import FeatureStore, MatchStore
from hardnet_sfm.files.training_curves import curves_file, read_curves
from hardnet_sfm.files.workspace import DEFAULT, Workspace, digest, read_json
from hardnet_sfm.pages.evaluation_page import make_evaluation_page, shows_photos
from hardnet_sfm.pages.model_page import (
    DescribedPhoto,
    MatchedPhotos,
    Reconstruction,
    Run,
    make_reconstruction_page,
)
from hardnet_sfm.pages.training_page import Hardest, PatchPairs, TrainingFacts, find_hardest, make_training_page
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import output

_POINTS = 1024  # points in which the hardest patches are searched
# Two points closer than this may look the same, so they are no negatives. The first distance is a share of the model's
# extent, the second is in pixels of one photo. Both are defaults of `train`.
_NEAR, _NEAR_PIXELS = 0.002, 4.0


def write_report(
    source: Workspace | Path | str,
    output: Path | str | None = None,
    *,
    images: Path | str | None = None,
    patches: Path | str | None = None,
    resources: Resources | None = None,
) -> Path:
    """Writes a self-contained page. It opens without a network in any browser of 2024 or later.

    Args:
        source: a workspace with a reconstruction, a .safetensors file that `train` has written or is writing, or a
            .json file that `evaluate` wrote for any data set.
        output: the .html file to write. The default is report.html in the workspace, or NAME.html next to the file.
        images: for a workspace, the folder of the photos if they moved since their features were extracted. If the
            folder does not exist, the page has no photos. For an evaluation on landmarks, the data set or the folder of
            its photos; without it, the page does not show the photos found for each query.
        patches: for weights, a patches.h5 in which to find the hardest positives and negatives.
        resources: threads and device to use.

    Returns:
        The path of the page.

    Raises:
        HardnetSfmError: there is nothing to report on, a file is damaged, photos have another size than their features,
            or the page cannot be written.
        UsageError: the output is not an .html file, or images or patches are given for a source that does not use them.
    """
    kind = "" if isinstance(source, Workspace) else Path(source).suffix
    for name, given, wanted in (("images", images, ("", ".json")), ("patches", patches, (".safetensors",))):
        if given is not None and kind not in wanted:
            raise UsageError(f"--{name} has no effect on the page about {source}", "Leave it out.")
    threads, folder = (resources or Resources()).threads, Path(images) if images else None
    if kind in (".safetensors", ".json"):
        assert not isinstance(source, Workspace)
        file = Path(source)
        target = Path(output) if output else file.with_suffix(".html")
        check_page(target)
        if kind == ".json":
            page = _evaluation_page(file, folder, threads)
        else:
            page = _training_page(file, Path(patches) if patches else None)
    else:
        place = source if isinstance(source, Workspace) else Workspace(Path(source))
        target = Path(output) if output else place.report
        page = _reconstruction_page(place, folder, threads)
    write_page(target, page)
    return target


def _reconstruction_page(place: Workspace, images: Path | None, threads: int) -> str:
    """Makes the page about the model of a workspace."""
    from hardnet_sfm.colmap.database import Database
    from hardnet_sfm.colmap.tracks import read_tracks
    from hardnet_sfm.files.weight_files import describe_weights

    if not place.root.is_dir():
        raise HardnetSfmError(
            f"no workspace at {place.root}",
            "Run `hardnet-sfm reconstruct IMAGES` first, or name a .safetensors of `train` or a .json of `evaluate`.",
        )
    if not place.summary.is_file():
        raise HardnetSfmError(f"no reconstruction in {place.root}", "Run `hardnet-sfm reconstruct IMAGES` first.")
    summary, name = read_json(place.summary), place.root.resolve().name
    with FeatureStore(place.features) as features, MatchStore(place.matches) as matches:
        folder, counts = images or Path(features.header["images"]), features.counts()
        check_photos(folder, features)
        there = folder.is_dir()
        notes = [] if there else [f"The photos are no longer in {folder}: say where they are with --images FOLDER."]
        photos = {
            name: DescribedPhoto(features.size(name), features.orientation(name), count)
            for name, count in counts.items()
        }
        fresh = summary.get("inputs") == inputs_fingerprint(features, matches)
        # Rows of the model number the matched keypoints, which may include keypoints of synthetic views.
        opened = matched_keypoints(place.view_keypoints, features, matches) if fresh else nullcontext(features)
        with opened as matched, Database(place.database) as database:
            made = Reconstruction(
                photos,
                {pair: count for pair, count in database.verified().items() if set(pair) <= photos.keys()},
                read_tracks(place.sparse / "0") if summary["models"] and summary["models"][0]["points"] else None,
                MatchedPhotos(matched.keypoints, database.inliers) if fresh else None,
                PhotoFolder(folder) if there else None,
            )
            weights = describe_weights(summary["options"]["extract"])
            return make_reconstruction_page(Run(name, summary, digest(summary), weights, notes), made, threads)


def _evaluation_page(results: Path, images: Path | None, threads: int) -> str:
    """Makes the page about a file that `evaluate --json` wrote."""
    table = read_json(results)
    if images is not None and not shows_photos(table):
        raise UsageError(f"--images has no effect on the page about {results}", "Leave it out.")
    try:
        return make_evaluation_page(table, PhotoFolder(images) if images else None, threads)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise HardnetSfmError(
            f"{results}: not what `evaluate --json` writes: {what}",
            "Make it with `hardnet-sfm evaluate ... --json`.",
        ) from error


def _training_page(weights: Path, patches: Path | None) -> str:
    """Makes the page about weights that `train` has written or is writing."""
    curves, notes, metadata, found = curves_file(weights), [], {}, None
    if not weights.is_file() and not curves.is_file():
        raise HardnetSfmError(
            f"neither {weights} nor {curves} exists", "Give the .safetensors file that `train` makes."
        )
    if weights.is_file():
        metadata = _read_metadata(weights)
        found = None if patches is None else _read_hardest(weights, patches)
    else:
        notes.append("The training has not ended: there are no weights yet.")
    if not curves.is_file():
        notes.append(f"No learning curves: there is no {curves}.")
    if weights.is_file() and patches is None:
        notes.append("Hardest positives and negatives are shown where patches are given: --patches held-out.h5.")
    shown = read_curves(curves) if curves.is_file() else {}
    return make_training_page(TrainingFacts(weights.name, metadata, shown, found, notes))


def _read_metadata(weights: Path) -> dict[str, Any]:
    """Reads the metadata of weights and decodes the JSON in it."""
    from hardnet_sfm.files.weight_files import read_weights

    loaded = read_weights(weights)
    decoded: dict[str, Any] = {**loaded.metadata, "sha256": loaded.sha256}
    for name in ("options", "measures", "data"):
        try:
            decoded[name] = json.loads(loaded.metadata.get(name, "null"))
        except ValueError:
            continue  # another program wrote the entry with another meaning
    return decoded


def _read_hardest(weights: Path, patches: Path) -> Hardest:
    """Finds the hardest patches for a network among 1024 points that are evenly spread over a file."""
    from hardnet_sfm.networks.loading import load_network

    pairs, loaded = read_patch_pairs(patches), load_network(weights)
    if loaded.architecture.metric != "l2":
        raise HardnetSfmError(
            f"{weights}: {loaded.architecture.title} has no descriptors, so there are no distances to show",
            "Leave out --patches.",
        )
    return find_hardest(loaded, pairs)


def read_patch_pairs(patches: Path) -> PatchPairs:
    """Reads the patches of each point in its first and its last photo, for 1024 evenly spread points.

    Raises:
        HardnetSfmError: the file is missing or damaged, or no point has two photos.
    """
    found = read_patches(patches)
    first = np.searchsorted(found.point, np.unique(found.point))
    last = np.append(first[1:], len(found)) - 1
    usable = np.flatnonzero(found.image[first] != found.image[last])
    if not len(usable):
        raise HardnetSfmError(f"{patches}: no point is in two photos", "Use more photos, or weaker filters in `mine`.")
    chosen = usable[spread(len(usable), _POINTS)]
    rows = np.stack([first[chosen], last[chosen]], 1)
    xyz, xy = found.xyz[found.point[rows[:, 0]]], found.frame[rows][:, :, :, 2]
    # Unknown positions (NaN) count as not close.
    near = np.linalg.norm(xyz[:, None] - xyz[None], axis=2) < _NEAR * found.extent
    one_photo = found.image[rows[:, 0]][:, None] == found.image[rows[:, 1]][None]
    near |= one_photo & (np.linalg.norm(xy[:, None, 0] - xy[None, :, 1], axis=2) < _NEAR_PIXELS)
    return PatchPairs(found.take(rows), np.asarray(near, np.bool_))


@dataclass(frozen=True)
class ReportCommand:
    """Options of `hardnet-sfm report`.

    Examples:
        hardnet-sfm report
        hardnet-sfm report out/ --images moved/ -o page.html
        hardnet-sfm report my.safetensors --patches held-out.h5
        hardnet-sfm report homography.json
        hardnet-sfm report oxford5k.json --images OXFORD
    """

    source: Annotated[Path, Positional, arg(metavar="SOURCE")] = DEFAULT
    """Workspace or file to show. A workspace with a model: cameras and points, photos, matches, statistics. A
    .safetensors file that `train` made or is making: learning curves, hardest patches. A .json file that `evaluate`
    wrote: its tables, curves of precision over recall, ROC or matching accuracy, and each query, pair or sequence."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """.html file to write. Default: report.html in the workspace, or NAME.html next to the file."""
    images: Path | None = None
    """For a workspace: folder of the photos, if they moved after `extract`. For an evaluation on landmarks: the data
    set, to show the first photos found for each query."""
    patches: Path | None = None
    """For weights: a file of patches to find the hardest positives and negatives in. Take scenes that were not trained
    on."""
    debug: bool = False
    """Show where in the program an error came from."""
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        page = write_report(
            self.source, self.output, images=self.images, patches=self.patches, resources=self.resources
        )
        output.print(escape(str(page)))
