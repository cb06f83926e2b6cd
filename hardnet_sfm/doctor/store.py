"""Checks of a store of features, ours or another program's in hloc's layout: what is in it, and in whose conventions.

What can be wrong and still look right is what is looked for: keypoints half a pixel off, angles of the other sense,
coordinates rounded to 16 bits. Some of it the file alone tells; the rest takes the photos, on which keypoints are
detected again (`conventions`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path

import h5py
import numpy as np

from hardnet_sfm.doctor.conventions import Photographed, compared_with_photos
from hardnet_sfm.doctor.facts import Grid, PhotoFacts, arrays_of, is_transposed, read_facts
from hardnet_sfm.doctor.findings import Finding
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.workspace import Workspace

_NAMED = 3
# Photos that keypoints are detected on again.
_LOOKED_AT = 3
_OF_UNIT_LENGTH = 0.01  # float16 moves the length of a descriptor by less than a thousandth
_WHOLE_PIXELS_LOST = 2048
_FEWEST = 50
_AS_FLOAT32 = "Write keypoints as float32 (hloc: as_half=False)."


def check_store(path: Path, images: Path | None = None) -> list[Finding]:
    """Checks a store of features. It is read once, from end to end.

    Args:
        path: features.h5 of this program, or a file in hloc's layout; or a workspace.
        images: folder of its photos, for what only they can tell. Default: where the store says they were.

    Raises:
        HardnetSfmError: there is none, it is no HDF5 file or damaged, or has no keypoints in it.
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
        return Finding("names", "ok", "no two are the same where a match store writes / as -")
    hint = "Matches of the one would be taken for those of the other: rename a photo or its folder, and extract again."
    return Finding("names", "broken", f"the same where a match store writes / as -: {_some(collisions)}", hint)


def _shapes(photos: list[PhotoFacts]) -> Finding:
    """Arrays of a photo have a row, or a column, for each of its keypoints."""
    turned = [photo.name for photo in photos if is_transposed(photo.shapes.get("descriptors", (0, 0)), photo.count)]
    if turned:
        hint = "hloc and this program read columns: write the transposed."
        return Finding("shapes", "broken", f"descriptors in rows, (N, D), in {_some(turned)}", hint)
    wrong = [
        f"{photo.name} ({key} of {shape[-1] if shape else 1}, {photo.count} keypoints)"
        for photo in photos
        for key, shape in photo.shapes.items()
        if key in ("descriptors", "scores", "scales", "oris", "affines")
        and (shape[0] if key == "affines" else shape[-1] if shape else 1) != photo.count
    ]
    if wrong:
        return Finding("shapes", "broken", f"other numbers than of keypoints: {_some(wrong)}", "Extract again.")
    columns = {photo.shapes["keypoints"][1] for photo in photos}
    if columns != {2}:
        said = f"keypoints have {', '.join(map(str, sorted(columns)))} columns"
        return Finding("shapes", "note", said, "hloc and this program read x and y, the first two.")
    return Finding("shapes", "ok", "an entry for each keypoint everywhere")


def _numbers(photos: list[PhotoFacts]) -> Finding:
    wrong = [f"{photo.name} ({', '.join(photo.not_finite)})" for photo in photos if photo.not_finite]
    if wrong:
        hint = "Extract again; from float16 without care, numbers over 65504 become infinite."
        return Finding("numbers", "broken", f"NaN or infinity in {_some(wrong)}", hint)
    flat = [photo.name for photo in photos if photo.least_scale is not None and photo.least_scale <= 0]
    if flat:
        return Finding("numbers", "broken", f"scales of 0 or less in {_some(flat)}", "Extract again.")
    return Finding("numbers", "ok", "all finite")


def _descriptors(photos: list[PhotoFacts]) -> Finding:
    without = [photo.name for photo in photos if len(photo.shapes.get("descriptors", ())) != 2]
    if without:
        return Finding("descriptors", "broken", f"none in {_some(without)}", "Extract again, with descriptors.")
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
        hint = "Distances, ratios and scores are those of unit vectors: divide each descriptor by its length."
        return Finding("descriptors", "broken", f"{said}; 1 is needed", hint)
    return Finding("descriptors", "ok", said)


def _precision(photos: list[PhotoFacts]) -> Finding:
    """float16 has 11 binary digits: steps of 1 pixel from 1024 on, of 2 from 2048 on."""
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
        hint = "It is (width, height)."
        return Finding("inside", "broken", f"image_size is (height, width): so in {_some(wrong)}", hint)
    said = f"{sum(photo.outside for photo in known)} keypoints outside their photos, in {_some(wrong)}"
    return Finding("inside", "broken", said, "Keypoints are in pixels of the photo as it is, not as it was resized to.")


def _conventions(path: Path, photos: list[PhotoFacts], images: Path | None, ours: bool) -> list[Finding]:
    """Where the origin is, and which way angles turn: by the photos where they are, else by the numbers alone."""
    alone = [_origin(photos, ours), _angles(photos, ours)]
    if images is None:
        return alone
    there = [photo for photo in photos if (images / photo.name).is_file()]
    if not there:
        return [
            Finding("photos", "note", f"none of the store's photos are in {images}", "Give --images FOLDER."),
            *alone,
        ]
    richest = sorted(there, key=lambda photo: photo.count)[-_LOOKED_AT:]
    with h5py.File(path, "r") as file:
        arrays = {photo.name: arrays_of(file[photo.name]) for photo in richest}
    compared = compared_with_photos(
        [
            Photographed(images / photo.name, of["keypoints"][:, :2], photo.size, of.get("scales"), of.get("oris"))
            for photo, of in zip(richest, arrays.values(), strict=True)
        ]
    )
    # What the photos do not tell the numbers may.
    told = {found.what: found for found in compared if found.state != "unknown"}
    of_conventions = [told.get(found.what, found) for found in alone]
    return [*(found for found in compared if found.what == "photos"), *of_conventions]


def _origin(photos: list[PhotoFacts], ours: bool) -> Finding:
    """Whether the centre of the top-left pixel is (0, 0), as here, or (0.5, 0.5), as in COLMAP.

    Keypoints beyond the last pixel centre by more than half a pixel are in COLMAP's. Detectors of whole pixels tell for
    certain: on a photo shrunk by a whole factor s, pixel k has its centre at s k + (s - 1) / 2 here, and at s k + s / 2
    in COLMAP's. The factor is the greatest common divisor of differences.
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
            "Multiply x + 0.5 by the factor, and subtract 0.5; if the detector looks at such pixels only, all is well."
        )
        said = f"likely: all {where}: scaled up by {factor:g} without regard to pixel centres"
        return Finding(what, "note", said, hint)
    beyond = sum(photo.last_half for photo in photos)
    if beyond and not any(photo.first_half for photo in photos):
        return Finding(what, "broken", f"likely: {wrong}: {beyond} keypoints are beyond the last pixel", subtract)
    if ours:
        return Finding(what, "ok", "the centre of the top-left pixel is (0, 0): hardnet-sfm made it")
    said = "keypoints have parts of pixels, by which their origin cannot be told"
    return Finding(what, "unknown", said, "Give --images FOLDER: keypoints are detected again and compared.")


def _grid(photos: list[PhotoFacts]) -> tuple[float, float] | None:
    """The factor s and the remainder r of keypoints that are all at s k + r with whole k, both multiples of 1/2."""
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
    """What the numbers alone tell of angles: their unit."""
    what = "angles"
    given = [photo.oris for photo in photos if photo.oris is not None]
    if not given:
        return Finding(what, "ok", "there are none, which hloc and mapping do without")
    least, most = min(first for first, _ in given), max(last for _, last in given)
    if least == most == 0:
        return Finding(what, "ok", "all 0: upright keypoints")
    count = sum(photo.count for photo in photos if photo.oris is not None)
    if count >= _FEWEST and max(abs(least), abs(most)) <= 2 * np.pi + 1e-2:
        said = f"certain: in radians, {least:.2f} to {most:.2f}"
        return Finding(what, "broken", said, "Here they are degrees: multiply them by 180 / pi.")
    if ours:
        return Finding(what, "ok", "degrees from x towards y, which is down: hardnet-sfm made it")
    said = "degrees, whose sense cannot be told by them alone"
    return Finding(what, "unknown", said, "Give --images FOLDER: keypoints are detected again and compared.")


def _some(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
