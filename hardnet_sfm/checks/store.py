"""Checks the contents and conventions of a store of features, of this package or of another program in hloc's layout.

The checks look for errors that are easy to miss: half-pixel offsets, flipped angles, coordinates rounded to 16 bits.
The file alone shows some of them. The others need the photos, on which keypoints are detected again (`conventions`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import numpy as np

from hardnet_sfm.checks.conventions import Photographed, compared_with_photos
from hardnet_sfm.checks.facts import Grid, PhotoFacts, arrays_of, is_transposed, read_facts
from hardnet_sfm.checks.findings import Finding
from hardnet_sfm.errors import HardnetSfmError, list_some
from hardnet_sfm.files.hdf5_files import open_hdf5
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.photo_names import as_on_disk

# Number of photos on which keypoints are detected again.
_LOOKED_AT = 3
_OF_UNIT_LENGTH = 0.01  # float16 changes the length of a descriptor by less than a thousandth
_WHOLE_PIXELS_LOST = 2048
_FEWEST = 50
_AS_FLOAT32 = "Write keypoints as float32 (hloc: as_half=False)."


def check_store(path: Path, images: Path | None = None) -> list[Finding]:
    """Checks a store of features. The whole file is read once.

    Args:
        path: features.h5 of this package, a file in hloc's layout, or a workspace.
        images: folder of its photos, for the checks that need them. The default is the folder that the store records.

    Raises:
        HardnetSfmError: the file does not exist, is not an HDF5 file, is damaged or has no keypoints in it.
    """
    path = Workspace(path).features if path.is_dir() else path
    if not path.is_file():
        raise HardnetSfmError(f"no such file: {path}", "Give a store of features, or a workspace that has one.")
    photos, header = read_facts(path)
    images = images or (Path(header["images"]) if header else None)
    if images is not None and not images.is_dir():
        images = None
    checks: tuple[Callable[[list[PhotoFacts]], Finding], ...] = (
        _names,
        _shapes,
        _numbers,
        _descriptors,
        _precision,
        _inside,
    )
    by = f"hardnet-sfm's, of {header['options']['descriptor']}" if header else "another program's, in hloc's layout"
    count = sum(photo.count for photo in photos)
    findings = [Finding("store", "ok", f"{path}: {by}; {count} keypoints in {len(photos)} photos")]
    findings += [check(photos) for check in checks]
    return findings + _conventions(path, photos, images, header is not None)


def _names(photos: list[PhotoFacts]) -> Finding:
    keys: dict[str, list[str]] = {}
    for photo in photos:
        keys.setdefault(photo.name.replace("/", "-"), []).append(photo.name)
    collisions = [" and ".join(names) for names in keys.values() if len(names) > 1]
    if not collisions:
        return Finding("names", "ok", "all differ, also when a match store writes / as -")
    hint = "Their matches would be mixed up. Rename a photo or its folder, and extract again."
    return Finding("names", "broken", f"the same when a match store writes / as -: {list_some(collisions)}", hint)


def _shapes(photos: list[PhotoFacts]) -> Finding:
    """Checks that the arrays of each photo have an entry for each of its keypoints."""
    turned = [photo.name for photo in photos if is_transposed(photo.shapes.get("descriptors", (0, 0)), photo.count)]
    if turned:
        hint = "hloc and this program read (D, N): transpose them."
        return Finding("shapes", "broken", f"descriptors in rows, (N, D), in {list_some(turned)}", hint)
    wrong = [
        f"{photo.name} ({key} of {shape[-1] if shape else 1}, {photo.count} keypoints)"
        for photo in photos
        for key, shape in photo.shapes.items()
        if key in ("descriptors", "scores", "scales", "oris", "affines")
        and (shape[0] if key == "affines" else shape[-1] if shape else 1) != photo.count
    ]
    if wrong:
        return Finding("shapes", "broken", f"not one entry for each keypoint: {list_some(wrong)}", "Extract again.")
    columns = {photo.shapes["keypoints"][1] for photo in photos}
    if columns != {2}:
        said = f"keypoints have {', '.join(map(str, sorted(columns)))} columns"
        return Finding("shapes", "note", said, "hloc and this program read x and y, the first two.")
    return Finding("shapes", "ok", "one entry for each keypoint everywhere")


def _numbers(photos: list[PhotoFacts]) -> Finding:
    wrong = [f"{photo.name} ({', '.join(photo.not_finite)})" for photo in photos if photo.not_finite]
    if wrong:
        hint = "Extract again. Numbers above 65504 become infinite in float16."
        return Finding("numbers", "broken", f"NaN or infinity in {list_some(wrong)}", hint)
    flat = [photo.name for photo in photos if photo.least_scale is not None and photo.least_scale <= 0]
    if flat:
        return Finding("numbers", "broken", f"scales of 0 or less in {list_some(flat)}", "Extract again.")
    return Finding("numbers", "ok", "all finite")


def _descriptors(photos: list[PhotoFacts]) -> Finding:
    without = [photo.name for photo in photos if len(photo.shapes.get("descriptors", ())) != 2]
    if without:
        return Finding("descriptors", "broken", f"none in {list_some(without)}", "Extract again, with descriptors.")
    dimensions = Counter(
        photo.shapes["descriptors"][1 if is_transposed(photo.shapes["descriptors"], photo.count) else 0]
        for photo in photos
        if photo.count
    )
    if len(dimensions) > 1:
        said = ", ".join(f"{length} numbers in {count} photos" for length, count in dimensions.most_common())
        return Finding("descriptors", "broken", f"of different lengths: {said}", "Extract all with one descriptor.")
    least, most = min(photo.lengths[0] for photo in photos), max(photo.lengths[1] for photo in photos)
    said = f"{next(iter(dimensions), 0)} numbers, length {least:.3f} to {most:.3f}"
    if not (abs(least - 1) < _OF_UNIT_LENGTH and abs(most - 1) < _OF_UNIT_LENGTH):
        hint = "Distances, ratios and scores need unit vectors: divide each descriptor by its length."
        return Finding("descriptors", "broken", f"{said}; 1 is needed", hint)
    return Finding("descriptors", "ok", said)


def _precision(photos: list[PhotoFacts]) -> Finding:
    """Checks the type of the keypoints. float16 has 11 bits: its step is 1 pixel from 1024 on, and 2 from 2048 on."""
    kinds = sorted({photo.kind for photo in photos})
    if "float16" not in kinds:
        return Finding("precision", "ok", f"keypoints in {', '.join(kinds)}")
    largest = max(photo.largest for photo in photos if photo.kind == "float16")
    if not np.isfinite(largest):
        return Finding("precision", "broken", "keypoints in float16 that are not finite", _AS_FLOAT32)
    error = float(np.spacing(np.float16(largest))) / 2
    said = f"keypoints in float16: coordinates to {largest:.0f} are rounded by {error:g} pixels at most"
    return Finding("precision", "broken" if largest >= _WHOLE_PIXELS_LOST else "note", said, _AS_FLOAT32)


def _inside(photos: list[PhotoFacts]) -> Finding:
    known = [photo for photo in photos if photo.size is not None]
    if not known:
        return Finding("inside", "unknown", "there are no image sizes in it", "Write image_size, (width, height).")
    wrong = [photo.name for photo in known if photo.outside]
    if not wrong:
        return Finding("inside", "ok", "all keypoints lie in their photos")
    if not any(photo.outside_turned for photo in known):
        hint = "Write it as (width, height)."
        return Finding("inside", "broken", f"image_size is (height, width) in {list_some(wrong)}", hint)
    said = f"{sum(photo.outside for photo in known)} keypoints outside their photos, in {list_some(wrong)}"
    return Finding("inside", "broken", said, "Write keypoints in pixels of the original photo, not of a resized copy.")


def _conventions(path: Path, photos: list[PhotoFacts], images: Path | None, ours: bool) -> list[Finding]:
    """Determines the origin of pixels and the direction of angles, from photos if possible, else from the numbers."""
    alone = [_origin(photos, ours), _angles(photos, ours)]
    if images is None:
        return alone
    there = [photo for photo in photos if as_on_disk(images / photo.name).is_file()]
    if not there:
        return [
            Finding("photos", "note", f"none of the store's photos are in {images}", "Give --images FOLDER."),
            *alone,
        ]
    richest = sorted(there, key=lambda photo: photo.count)[-_LOOKED_AT:]
    with open_hdf5(path, "Make it again, or get a copy.") as file:
        arrays = {photo.name: arrays_of(file[photo.name]) for photo in richest}
    compared = compared_with_photos(
        [
            Photographed(images / photo.name, of["keypoints"][:, :2], photo.size, of.get("scales"), of.get("oris"))
            for photo, of in zip(richest, arrays.values(), strict=True)
        ]
    )
    # The numbers may decide a question that the photos leave open.
    told = {found.what: found for found in compared if found.state != "unknown"}
    of_conventions = [told.get(found.what, found) for found in alone]
    return [*(found for found in compared if found.what == "photos"), *of_conventions]


def _origin(photos: list[PhotoFacts], ours: bool) -> Finding:
    """Determines whether the centre of the top-left pixel is (0, 0), as here, or (0.5, 0.5), as in COLMAP.

    Keypoints beyond the last pixel centre by more than half a pixel follow COLMAP. Detectors that find whole pixels
    give certainty. On a photo shrunk by an integer factor s, the centre of pixel k is at s k + (s - 1) / 2 in this
    package, and at s k + s / 2 in COLMAP. The factor is the greatest common divisor of the differences.
    """
    what = "half a pixel"
    wrong = "the centre of the top-left pixel is (0.5, 0.5), as in COLMAP"
    subtract = "Subtract 0.5 from x and y: here, as in hloc and OpenCV, it is (0, 0)."
    if (grid := _grid(photos)) is not None:
        factor, remainder = grid
        where = f"keypoints are at {_terms(factor, remainder)}"
        if remainder == factor / 2:
            return Finding(what, "broken", f"certain: {wrong}: all {where}", subtract)
        if remainder == (factor - 1) / 2:
            return Finding(what, "ok", f"certain: all {where}")
        hint = (
            "Multiply x + 0.5 by the factor, then subtract 0.5. Nothing is wrong if the detector only uses such pixels."
        )
        said = f"likely: all {where}: scaled up by {factor:g} without regard to pixel centres"
        return Finding(what, "note", said, hint)
    beyond = sum(photo.last_half for photo in photos)
    if beyond and not any(photo.first_half for photo in photos):
        return Finding(what, "broken", f"likely: {wrong}: {beyond} keypoints are beyond the last pixel", subtract)
    if ours:
        return Finding(what, "ok", "the centre of the top-left pixel is (0, 0): hardnet-sfm made it")
    said = "keypoints have fractions of pixels, which do not show where the origin is"
    return Finding(what, "unknown", said, "Give --images FOLDER: keypoints are detected again and compared.")


def _grid(photos: list[PhotoFacts]) -> tuple[float, float] | None:
    """Returns s and r, multiples of 1/2, if all keypoints are at s k + r with integer k; otherwise None."""
    grids = [photo.grid for photo in photos if photo.grid is not None]
    if len(grids) < len(photos):
        return None
    joined = reduce(Grid.joined, grids)
    if joined.count < _FEWEST or joined.step < 2 or joined.step % 2:
        return None
    return joined.step / 2, joined.one % joined.step / 2


def _terms(factor: float, remainder: float) -> str:
    return f"{'' if factor == 1 else f'{factor:g} '}k + {remainder:g}"


def _angles(photos: list[PhotoFacts], ours: bool) -> Finding:
    """Determines the unit of angles from the numbers alone."""
    what = "angles"
    given = [photo.oris for photo in photos if photo.oris is not None]
    if not given:
        return Finding(what, "ok", "there are none; hloc and mapping do not need them")
    least, most = min(first for first, _ in given), max(last for _, last in given)
    if least == most == 0:
        return Finding(what, "ok", "all 0: upright keypoints")
    count = sum(photo.count for photo in photos if photo.oris is not None)
    if count >= _FEWEST and max(abs(least), abs(most)) <= 2 * np.pi + 1e-2:
        said = f"certain: in radians, {least:.2f} to {most:.2f}"
        return Finding(what, "broken", said, "Here they are degrees: multiply them by 180 / pi.")
    if ours:
        return Finding(what, "ok", "degrees from x towards y, which is down: hardnet-sfm made it")
    said = "degrees, which do not show their direction by themselves"
    return Finding(what, "unknown", said, "Give --images FOLDER: keypoints are detected again and compared.")
