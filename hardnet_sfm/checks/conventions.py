"""Determines the conventions of a store of features by detecting keypoints on its photos again.

Keypoints of a blob detector coincide with the new detections to a small part of a pixel. If most of them differ by half
a pixel in both x and y, the store uses another origin of pixels. The angles of coinciding keypoints can then be
compared. Keypoints of another kind, such as corners, coincide only by chance. In that case the check says that it
cannot tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.checks.findings import Finding
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.keypoints import Keypoints, within_reach
from hardnet_sfm.photos import Photo, resize_to_fit

# Longest sides of photos at which keypoints may have been detected: the default here, and those of hloc.
_SIDES = (3200, 1600, 1024)
_KEYPOINTS = 20000
_REACH = 1.2
# Largest deviation in pixels from one of the offsets below for a pair of keypoints to count for it.
_NEAR = 0.15
_OFFSETS = {"(0, 0)": (0.0, 0.0), "(0.5, 0.5)": (0.5, 0.5), "(-0.5, -0.5)": (-0.5, -0.5)}
_ANGLES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "degrees": lambda oris: oris,
    "degrees the other way round": lambda oris: -oris,
    "radians": lambda oris: np.rad2deg(oris),
    "radians the other way round": lambda oris: -np.rad2deg(oris),
}
_ALIKE = 10.0  # degrees
_FEWEST = 40
_CLEARLY = 2.0  # the best reading must fit this many times as often as the second best
# Above this coordinate, steps of float16 exceed an eighth of a pixel.
_EXACT_HALF = 256
_SAME_SCALE = 0.3  # octaves


@dataclass(frozen=True, eq=False)
class Photographed:
    """Keypoints of a store, and the path of their photo.

    Attributes:
        path: path of the photo.
        xy: (N, 2) pixels, in the type of the store.
        size: width and height in the store, or None.
        scales: (N,) sigmas in pixels, or None.
        oris: (N,) angles, or None.
    """

    path: Path
    xy: NDArray[np.floating]
    size: tuple[int, int] | None
    scales: NDArray[np.floating] | None
    oris: NDArray[np.floating] | None


def compared_with_photos(stored: Sequence[Photographed]) -> list[Finding]:
    """Compares keypoints with their photos. Returns findings on sizes, on the origin ("half a pixel") and on angles."""
    amiss: list[Finding] = []
    offsets: Counter[str] = Counter()
    angles: Counter[str] = Counter()
    compared = 0
    for one in stored:
        try:
            photo = read_photo(one.path)
        except HardnetSfmError as error:
            amiss.append(Finding("photos", "note", error.message, error.hint))
            continue
        if one.size not in (None, photo.size):
            amiss.append(_other_size(one, photo))
            continue
        offset, angle, count = _coincidences(one, photo)
        offsets, angles, compared = offsets + offset, angles + angle, compared + count
    found = amiss[:1] or [Finding("photos", "ok", f"checked {len(stored)}: they have the sizes that the store gives")]
    return [*found, _origin(offsets, compared), _sense(angles)]


def _other_size(one: Photographed, photo: Photo) -> Finding:
    stored, real = (f"{width}x{height}" for width, height in (one.size or (0, 0), photo.size))
    if photo.orientation >= 5 and one.size == photo.size[::-1]:
        hint = "This program uses pixels of the upright photo. hloc and COLMAP use pixels of the photo as stored."
        return Finding("photos", "note", f"{one.path.name}: keypoints are of the photo as stored, turned by EXIF", hint)
    hint = "The photo was changed or replaced: extract again."
    return Finding("photos", "broken", f"{one.path}: {real} pixels, {stored} in the store", hint)


def _coincidences(one: Photographed, photo: Photo) -> tuple[Counter[str], Counter[str], int]:
    """Counts how often each offset and each reading of angles fits, and how many keypoints were compared."""
    usable = np.isfinite(one.xy).all(1)
    if one.xy.dtype == np.float16:
        usable &= (np.abs(one.xy) < _EXACT_HALF).all(1)
    rows = np.flatnonzero(usable)
    best: tuple[Counter[str], NDArray[np.intp], NDArray[np.intp], Keypoints] | None = None
    for side in _SIDES:
        if side != _SIDES[0] and side >= max(photo.size):
            continue
        again = _detected(photo, side)
        first, second = _neighbours(one, rows, again)
        counted = _offsets(first, one.xy[first] - again.xy[second])
        if best is None or max(counted.values(), default=0) > max(best[0].values(), default=0):
            best = counted, first, second, again
    assert best is not None
    counted, first, second, again = best
    angles: Counter[str] = Counter()
    if one.oris is not None and one.oris[usable].any() and counted:
        offset = _OFFSETS[counted.most_common(1)[0][0]]
        near = np.abs(one.xy[first] - again.xy[second] - offset).max(1) < _NEAR
        angles = _readings(one.oris, first[near], again.oris[second[near]].astype(np.float64))
    return counted, angles, len(rows)


def _detected(photo: Photo, side: int) -> Keypoints:
    from hardnet_sfm.features.detectors import DetectorOptions, make_detector

    grey = resize_to_fit(photo.grey, side)
    options = DetectorOptions(_KEYPOINTS, 0.02 / 3, 10, upright=False, affine_shape=False)
    return make_detector("opencv-dog", options)(grey).resized((grey.shape[1], grey.shape[0]), photo.size)


def _neighbours(
    one: Photographed, rows: NDArray[np.intp], again: Keypoints
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Finds stored and newly detected keypoints that are close to each other and have similar scales.

    Returns:
        Rows of the stored keypoints, and rows of the newly detected keypoints.
    """
    first, second = within_reach(one.xy[rows].astype(np.float64), again.xy, _REACH)
    first = rows[first]
    near = np.abs(one.xy[first] - again.xy[second]).max(1) < _REACH
    if one.scales is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            near &= np.abs(np.log2(one.scales[first] / again.scales[second])) < _SAME_SCALE
    return first[near], second[near]


def _offsets(rows: NDArray[np.intp], differences: NDArray[np.floating]) -> Counter[str]:
    """Counts keypoints with a difference close to each offset. `rows` are the keypoints of the (M, 2) differences."""
    counted: Counter[str] = Counter()
    for name, offset in _OFFSETS.items():
        near = np.abs(differences - offset).max(1, initial=0) < _NEAR
        if near.any():
            counted[name] = len(np.unique(rows[near]))
    return counted


def _readings(oris: NDArray[np.floating], rows: NDArray[np.intp], again: NDArray[np.floating]) -> Counter[str]:
    """Counts the keypoints whose angle agrees with a newly detected angle at their position, for each reading."""
    counted: Counter[str] = Counter()
    for name, read in _ANGLES.items():
        apart = np.abs((read(oris[rows].astype(np.float64)) - again + 180) % 360 - 180)
        counted[name] = len(np.unique(rows[apart < _ALIKE]))
    counted["compared"] = len(np.unique(rows))
    return counted


def _clear_winner(counted: Counter[str]) -> tuple[str, int] | None:
    """Returns the reading that fits clearly more often than any other, or None."""
    (name, count), (_, next_count) = [*counted.most_common(2), ("", 0), ("", 0)][:2]
    return (name, count) if count >= _FEWEST and count > _CLEARLY * next_count else None


def _origin(offsets: Counter[str], compared: int) -> Finding:
    what = "half a pixel"
    winner = _clear_winner(offsets)
    if winner is None:
        said = (
            f"too few of {compared} keypoints are found again: the detector finds no blobs, or had another resolution"
        )
        return Finding(what, "unknown", said, "Compare with what the program's documentation says about pixel centres.")
    name, count = winner
    said = f"certain: {count} of {compared} keypoints are {name} from where they are found again"
    if name == "(0, 0)":
        return Finding(what, "ok", said)
    sign = "Subtract 0.5 from" if name == "(0.5, 0.5)" else "Add 0.5 to"
    return Finding(what, "broken", said, f"{sign} x and y: the centre of the top-left pixel is (0, 0) here.")


def _sense(angles: Counter[str]) -> Finding:
    what = "angles"
    compared = angles.pop("compared", 0)
    winner = _clear_winner(angles)
    if winner is None or winner[1] < compared / 3:
        said = f"the angles of {compared} keypoints that are found again fit no known convention"
        return Finding(what, "unknown", said, "Compare with what the program's documentation says about angles.")
    name, count = winner
    said = f"certain: read as {name}, {count} of {compared} agree with those that are found again"
    if name == "degrees":
        return Finding(what, "ok", said)
    hint = "Here they are degrees from x towards y, which is down, as in COLMAP and OpenCV; kornia's are minus that."
    return Finding(what, "broken", said, hint)
