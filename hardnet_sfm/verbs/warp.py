"""The command `warp` makes training patches from photos alone.

It warps each photo by known homographies and keeps the points that a detector finds again in the warped views.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import arg

from hardnet_sfm.errors import HardnetSfmError, file_error
from hardnet_sfm.files.ownership import check_output
from hardnet_sfm.files.patch_sets import PatchWriter, is_made, read_patches
from hardnet_sfm.files.photo_files import read_colours, read_photo, sha256_of
from hardnet_sfm.files.photo_folders import NotTaken, list_photos
from hardnet_sfm.files.workspace import digest, locked
from hardnet_sfm.photos import resize_to_fit
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import Images, output, print_not_taken, print_skipped
from hardnet_sfm.training.warping import WarpedPatches, WarpOptions, cut_warped_patches
from hardnet_sfm.verbs.mine import print_patches
from hardnet_sfm.workers import threaded

_EXTENT = 1000.0  # pixels


@dataclass(frozen=True)
class WarpResult:
    """Result of the stage.

    Attributes:
        patches: number of patches in the file.
        points: number of points they show.
        photos: number of photos they come from.
        computed: number of photos processed in this run; the others were up to date.
        skipped: maps the name of each photo without patches to the reason.
        not_taken: what else is in the folder, such as photos in formats that are not read.
    """

    patches: int
    points: int
    photos: int
    computed: int
    skipped: dict[str, str]
    not_taken: NotTaken


def warp(
    images: Path, output: Path, options: WarpOptions | None = None, resources: Resources | None = None
) -> WarpResult:
    """Makes a patches.h5 from a folder of photos. The photos need not show the same scene.

    The xyz of a point has its position in its photo in pixels as x and y. The z coordinate depends on the photo and
    puts the points of different photos far apart. The extent is 1000 pixels.

    Args:
        images: folder of photos, searched recursively.
        output: patches.h5 to create or to continue.
        options: options of the warps and of the detector.
        resources: threads and device to use.

    Raises:
        HardnetSfmError: the folder has no photos, none of them can be read, or no point was found again.
        UsageError: an option is invalid.
    """
    from hardnet_sfm.features.detectors import DetectorOptions, make_detector

    options, resources = options or WarpOptions(), resources or Resources()
    options.check()
    listed = list_photos(images)
    names = listed.names
    detect = make_detector(options.detector, DetectorOptions(options.max_keypoints, 0.02 / 3, 10, False, False))
    recipe = asdict(options)

    def make(name: str) -> WarpedPatches:
        photo = read_photo(images / name)
        # The seed depends on the photo's content, so that the same photo gives the same patches in any folder and with
        # any number of threads.
        rng = np.random.default_rng((options.seed, int(photo.sha256[:8], 16)))
        colours = resize_to_fit(read_colours(images / name), options.max_image_size) if options.relit else None
        return cut_warped_patches(resize_to_fit(photo.grey, options.max_image_size), detect, options, rng, colours)

    photos, skipped, copies = _hash_photos(images, names)
    names = list(photos)
    prints = {name: digest("warps", recipe, photos[name]) for name in names}
    made_of = {**recipe, "fingerprint": digest(prints)}
    due: list[str] = []
    with locked(output.parent, output.name), PatchWriter(output) as writer:
        if not is_made(output, made_of):
            due = [name for name in names if writer.done.get(name) != prints[name]]
            with (
                progress("warp", len(names), len(names) - len(due)) as advance,
                threaded(make, due, resources.threads) as stream,
            ):
                for name, future in stream:
                    try:
                        made = future.result()
                    except HardnetSfmError as error:
                        skipped[name] = error.message
                    else:
                        _put(writer, name, prints[name], made, photos[name], options.views)
                    advance(note=name)
            kept = [view for name in names if name not in skipped for view in _views(name, options.views)]
            if not kept:
                raise HardnetSfmError(f"{images}: none of the photos can be read", next(iter(skipped.values())))
            writer.commit(kept, "warps", options.measurement_size, _EXTENT, made_of)
        else:
            writer.discard()
    patches = read_patches(output)
    used = len(patches.images) // (options.views + 1)
    computed = sum(name not in skipped for name in due)
    return WarpResult(len(patches), len(patches.xyz), used, computed, skipped | copies, listed.not_taken)


def _hash_photos(images: Path, names: list[str]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Returns the sha256 of each photo, why others cannot be read, and of which photo others are a copy, by name.

    The points of a copy would have the same numbers, and the patches of one point would have identical pixels.
    """
    photos: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    copies: dict[str, str] = {}
    first: dict[str, str] = {}
    for name in names:
        try:
            sha256 = sha256_of(images / name)
        except OSError as error:
            unreadable[name] = file_error(images / name, error).message
            continue
        if sha256 in first:
            copies[name] = f"the same photo as {first[sha256]}"
        else:
            first[sha256], photos[name] = name, sha256
    return photos, unreadable, copies


def _views(name: str, views: int) -> list[str]:
    """Names the views of a photo. The photo itself keeps its name and comes last, so it marks all views as finished."""
    return [f"{name}#{view}" for view in range(1, views + 1)] + [name]


def _put(writer: PatchWriter, name: str, fingerprint: str, made: WarpedPatches, sha256: str, views: int) -> None:
    for view, view_name in zip([*range(1, views + 1), 0], _views(name, views), strict=True):
        rows = np.flatnonzero(made.view == view)
        xy = made.xy[made.point[rows]]
        arrays: dict[str, NDArray[Any]] = {
            "patches": made.patches[rows],
            # The number depends on the photo's content. A position in the list of photos would shift if a resumed run
            # finds other photos.
            "point": made.point[rows] + (int(sha256[:10], 16) << 20),
            "frame": made.frame[rows],
            "angle": np.full(len(rows), np.nan, np.float32),
            "xyz": np.column_stack([xy, np.full(len(rows), int(sha256[:4], 16) * 10 * _EXTENT)]).astype(np.float32),
        }
        writer.put(view_name, fingerprint, arrays)


@dataclass(frozen=True)
class WarpCommand:
    """Options of `hardnet-sfm warp`.

    Examples:
        hardnet-sfm warp photos/ -o warps.h5
        hardnet-sfm warp photos/ -o warps.h5 --views 8 --sheet sheet.png
    """

    images: Images
    """Folder of photos, searched recursively, never written to. They need not show the same thing."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """File of patches to write, such as patches.h5."""
    sheet: Path | None = None
    """PNG picture to draw some of the patches on, one point in each row."""
    debug: bool = False
    """Show where in the program an error came from."""
    warp: WarpOptions = field(default_factory=WarpOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        check_output(self.sheet)
        result = warp(self.images, self.output, self.warp, self.resources)
        output.print(f"{result.patches} patches of {result.points} points in {result.photos} photos")
        print_skipped(result.skipped)
        print_not_taken(result.not_taken)
        print_patches(self.output, self.sheet, None)
