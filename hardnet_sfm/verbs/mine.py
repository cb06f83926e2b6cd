"""The command `mine` cuts training patches from a COLMAP model and its photos and writes patches.h5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.outputs import write_picture
from hardnet_sfm.files.ownership import check_output
from hardnet_sfm.files.patch_sets import PatchWriter, is_made, read_patches
from hardnet_sfm.files.photo_checks import check_sizes
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.files.workspace import digest, locked
from hardnet_sfm.frames import (
    REACH,
    Frames,
    associated,
    beside,
    frames_of_keypoints,
    known_frames,
    upright_from_stored,
)
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.patch_set import PATCH_SIZE
from hardnet_sfm.photos import Size
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import output, print_skipped
from hardnet_sfm.training.observations import MineOptions, Selection, select
from hardnet_sfm.workers import threaded

if TYPE_CHECKING:  # pycolmap takes a second to import
    from hardnet_sfm.colmap.tracks import Tracks

Detect = Callable[[NDArray[np.uint8]], Keypoints]

# Largest distance in pixels from an observation to a newly detected keypoint. A second detection does not reproduce the
# positions of the model's keypoints exactly.
_REACH_OF_DETECTED = 1.0


@dataclass(frozen=True)
class MineResult:
    """Result of the stage.

    Attributes:
        photos: number of photos that patches were cut from.
        points: number of points; each point is a class for training.
        patches: number of patches of all points together.
        observations: number of observations in the model.
        dropped: number of observations that each filter dropped, in the order of the filters.
        computed: number of photos processed in this run; the others were up to date.
        skipped: maps the name of each unreadable photo to the reason.
    """

    photos: int
    points: int
    patches: int
    observations: int
    dropped: dict[str, int]
    computed: int
    skipped: dict[str, str] = field(default_factory=dict)


class _View(NamedTuple):
    """A photo of the model and the local affine frames of its observations.

    Frames are in COLMAP's pixel coordinates. An observation without a keypoint has NaN.
    """

    sha256: str
    orientation: int
    size: Size
    frames: Frames


def mine(
    model: Path,
    images: Path,
    output: Path,
    options: MineOptions | None = None,
    resources: Resources | None = None,
    *,
    keypoints: Path | None = None,
    detect: Detect | None = None,
) -> MineResult:
    """Cuts a patch for each observation of a model that agrees with the other observations of its point.

    Each photo is read twice. The first pass checks that the photos belong to the model and finds the keypoint of each
    observation. After the filters have selected observations, the second pass cuts the patches. At most `threads + 2`
    photos are in memory at any time, independent of their number. About 1 KB for each observation of the model adds to
    that. A killed run resumes with the photo whose patches it was cutting.

    Args:
        model: workspace of this package, whose largest model is used, or folder of any COLMAP model, binary or text.
        images: folder of the model's photos.
        output: patches.h5 to create.
        options: filters, and the size of the patches.
        resources: threads and device to use.
        keypoints: features.h5 or COLMAP database with the scales and orientations of the keypoints. The default is
            one next to the model.
        detect: finds keypoints in photos whose keypoints have no known scale and orientation.

    Raises:
        HardnetSfmError: there is no model, the model has no tracks, none of its photos can be read, a photo and its
            camera differ in size, scales and orientations are unknown, the filters drop every observation, or the disk
            is full.
        UsageError: an option is invalid.
    """
    from hardnet_sfm.colmap.model import models_in
    from hardnet_sfm.colmap.tracks import read_tracks

    options, resources = options or MineOptions(), resources or Resources()
    options.check()
    folder = models_in(model)[0]
    tracks = read_tracks(folder)
    if not images.is_dir():
        raise HardnetSfmError(f"no such folder: {images}", "Give the folder that holds the model's photos.")
    check_sizes(images, tracks.sizes_by_name(), "its camera")
    with known_frames(keypoints or beside(folder)) as known:
        views, skipped = _look(tracks, images, known, detect, resources.threads)
    axes = np.full((len(tracks.point), 2, 2), np.nan, np.float32)
    for number, view in views.items():
        axes[tracks.of_photo(number)] = view.frames.axes
    readable = np.isin(np.arange(len(tracks.names)), list(views))
    selection = select(tracks, axes, options, readable)
    if not len(selection.rows):
        drops = ", ".join(f"{name} {count}" for name, count in selection.dropped.items())
        raise HardnetSfmError(
            f"{folder}: none of the {len(tracks.point)} observations can be used (dropped: {drops})",
            "If most have no photo, give the folder with all photos. If most have no keypoint, the features or the "
            "database belong to another model. Otherwise weaken the filter.",
        )
    columns = _columns(tracks, views, selection)
    with locked(output.parent, output.name):
        computed = _cut_all(tracks, views, columns, images, output, options, resources.threads)
    return MineResult(
        photos=len(columns),
        points=len(np.unique(tracks.point[selection.rows])),
        patches=len(selection.rows),
        observations=len(tracks.point),
        dropped=selection.dropped,
        computed=computed,
        skipped=skipped,
    )


def _look(
    tracks: Tracks, images: Path, known: Callable[[str], Frames | None], detect: Detect | None, threads: int
) -> tuple[dict[int, _View], dict[str, str]]:
    """Reads every photo and finds the keypoint of every observation.

    Returns:
        Readable photos by their number in the model, and the reasons why the others could not be read, by name.
    """

    def look(item: tuple[int, Frames | None]) -> _View | str:
        number, found = item
        try:
            photo = read_photo(images / tracks.names[number])
        except HardnetSfmError as error:
            return error.message
        reach = REACH
        if found is None:
            if detect is None:
                raise HardnetSfmError(
                    f"no scales and orientations are known for the keypoints of {tracks.names[number]}",
                    "Give the model's features.h5 or database.db with --keypoints, or a detector.",
                )
            found, reach = frames_of_keypoints(detect(photo.grey), photo.orientation, photo.size), _REACH_OF_DETECTED
        rows = tracks.of_photo(number)
        frames = found.select(associated(tracks.xy[rows], tracks.row[rows], found, reach))
        return _View(photo.sha256, photo.orientation, photo.size, frames)

    views: dict[int, _View] = {}
    skipped: dict[str, str] = {}
    items = ((number, known(name)) for number, name in enumerate(tracks.names))
    with progress("look", len(tracks.names)) as advance, threaded(look, items, threads) as stream:
        for (number, _), future in stream:
            view = future.result()
            if isinstance(view, str):
                skipped[tracks.names[number]] = view
            else:
                views[number] = view
            advance(note=tracks.names[number])
    if not views:
        first = next(iter(skipped.values()))
        raise HardnetSfmError(f"{images}: none of the model's {len(skipped)} photos can be read", first)
    return views, skipped


def _columns(tracks: Tracks, views: dict[int, _View], selection: Selection) -> dict[int, dict[str, NDArray[Any]]]:
    """Collects the columns of the selected patches other than the pixels, by the number of the photo."""
    order = np.argsort(tracks.photo[selection.rows], kind="stable")
    photos, first = np.unique(tracks.photo[selection.rows[order]], return_index=True)
    columns = {}
    for number, part in zip(photos.tolist(), np.split(order, first[1:]), strict=True):
        view, rows = views[number], selection.rows[part]
        of_view = view.frames.select(rows - tracks.of_photo(number).start)
        upright = of_view.through(upright_from_stored(view.orientation, view.size))
        columns[number] = {
            "point": tracks.point_ids[tracks.point[rows]],
            "frame": np.concatenate([upright.axes, upright.xy[:, :, None]], 2),
            "angle": selection.angle[part],
            "xyz": tracks.xyz[tracks.point[rows]].astype(np.float32),
        }
    return columns


def _cut_all(
    tracks: Tracks,
    views: dict[int, _View],
    columns: dict[int, dict[str, NDArray[Any]]],
    images: Path,
    output: Path,
    options: MineOptions,
    threads: int,
) -> int:
    """Cuts the selected patches, photo by photo, and writes the file. Returns the number of photos cut in this run."""
    from hardnet_sfm.patches import extract_patches

    prints = {
        number: digest(
            "patches",
            options.measurement_size,
            views[number].sha256,
            *(sha256(column.tobytes()).hexdigest() for column in of_photo.values()),
        )
        for number, of_photo in columns.items()
    }
    names = {number: tracks.names[number] for number in columns}
    made_of = {**asdict(options), "fingerprint": digest([(names[number], prints[number]) for number in names])}
    if is_made(output, made_of):
        with PatchWriter(output) as writer:
            writer.discard()
        return 0

    def cut(number: int) -> NDArray[np.uint8]:
        axes, xy = (np.ascontiguousarray(part) for part in np.split(columns[number]["frame"], [2], 2))
        grey = read_photo(images / names[number]).grey
        return extract_patches(grey, xy[:, :, 0], axes, PATCH_SIZE, options.measurement_size)

    with PatchWriter(output) as writer:
        due = [number for number in columns if writer.done.get(names[number]) != prints[number]]
        with (
            progress("mine", len(columns), len(columns) - len(due)) as advance,
            threaded(cut, due, threads) as stream,
        ):
            for number, future in stream:
                writer.put(names[number], prints[number], {**columns[number], "patches": future.result()})
                advance(note=names[number])
        writer.commit(list(names.values()), "sfm", options.measurement_size, extent(tracks), made_of, keep_ids=True)
    return len(due)


def extent(tracks: Tracks) -> float:
    """Measures the size of a model in its own units.

    The size is the diagonal of the box that spans the middle nine tenths of the points along each axis. A box around
    all points would depend on the farthest wrong point.
    """
    low, high = np.quantile(tracks.xyz, [0.05, 0.95], axis=0)
    return float(np.linalg.norm(high - low))


@dataclass(frozen=True)
class MineCommand:
    """Options of `hardnet-sfm mine`.

    Examples:
        hardnet-sfm mine hardnet-sfm-out/ --images images/ -o patches.h5
        hardnet-sfm mine model/ --images images/ -o patches.h5 --sheet sheet.png
    """

    model: Annotated[Path, Positional, arg(metavar="MODEL")]
    """Workspace that `reconstruct` made, or the folder of any COLMAP model."""
    images: Path
    """Folder of the model's photos."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """File of patches to write, such as patches.h5."""
    keypoints: Path | None = None
    """features.h5 or COLMAP database with the scales and orientations of the keypoints. Default: one next to the
    model."""
    sheet: Path | None = None
    """PNG picture to draw some of the patches on, one point in each row."""
    as_brown: Path | None = None
    """Folder to write the same patches to in the layout of Brown's PhotoTour, for other training programs."""
    debug: bool = False
    """Show where in the program an error came from."""
    mine: MineOptions = field(default_factory=MineOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.features.detectors import DetectorOptions, make_detector

        check_output(self.sheet)
        detect = make_detector("opencv-dog", DetectorOptions(8192, 0.02 / 3, 10, upright=False, affine_shape=False))
        result = mine(
            self.model,
            self.images,
            self.output,
            self.mine,
            self.resources,
            keypoints=self.keypoints,
            detect=detect,
        )
        output.print(f"{result.patches} patches of {result.points} points in {result.photos} photos")
        for name, count in result.dropped.items():
            output.print(f"  {100 * count / result.observations:5.2f} % dropped: {name}")
        print_skipped(result.skipped)
        print_patches(self.output, self.sheet, self.as_brown)


def print_patches(patches: Path, sheet: Path | None, as_brown: Path | None) -> None:
    """Draws the sheet and writes Brown's layout if they were asked for, and prints where the files are."""
    output.print(escape(str(patches)))
    if sheet is not None:
        write_sheet(patches, sheet)
        output.print(escape(str(sheet)))
    if as_brown is not None:
        from hardnet_sfm.evaluation.datasets.brown import write_brown

        write_brown(read_patches(patches), as_brown)
        output.print(escape(str(as_brown)))


def write_sheet(patches: Path, png: Path, *, points: int = 24, columns: int = 16) -> None:
    """Writes a picture of some patches of a file, see `hardnet_sfm.pages.sheets.draw_sheet`.

    Raises:
        HardnetSfmError: the file of patches is missing or damaged, or the picture cannot be written.
    """
    from hardnet_sfm.pages.sheets import draw_sheet

    read = read_patches(patches)
    write_picture(png, draw_sheet(read.patches, read.point, points=points, columns=columns))
