"""Synthetic views of a photo: rendered as if its surfaces were tilted, detected in, described and mapped back.

Morel and Yu, ASIFT: A new framework for fully affine invariant image comparison, SIAM J. Imaging Sciences 2009: up to
what a detector and descriptor are invariant to themselves, an affine view is a tilt t in a direction phi.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, cos, log, radians, sin, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.features.detectors import Detect, make_detector
from hardnet_sfm.features.extraction import ExtractOptions, detector_options
from hardnet_sfm.files.photo_files import Affine2, Photo, resize_to_fit
from hardnet_sfm.keypoints import Keypoints, within_reach
from hardnet_sfm.resources import Resources

# Of the blur before a tilt, in pixels for sqrt(t^2 - 1): what makes a blur of 0.8 pixels one of 0.8 t (ASIFT).
_ANTI_ALIASING = 0.8
# A keypoint is dropped if the circle of so many of its sigmas, which its patch lies in, leaves the photo.
_SIGMAS_INSIDE = 6.0
# Two keypoints are the same if they are no farther apart, pixels, and their scales differ by no larger factor.
SAME_PLACE = 1.5
_SAME_SCALE = 1.5


@dataclass(frozen=True)
class View:
    """A direction that a photo is seen from.

    Attributes:
        tilt: factor, above 1, by which one direction appears shortened: 1 / cos of the angle of the plane's tilt.
        rotation: degrees from x towards y (down): the direction that is not shortened has -sin, cos of it.
    """

    tilt: float
    rotation: float

    def photo_to_view(self, size: tuple[int, int]) -> Affine2:
        """The (2, 3) affine map from pixels of a photo of (width, height) to pixels of the view, centres at integers.

        It is diag(1 / t, 1) R(-phi) about the corner, shifted so that the view has no negative positions.
        """
        return (_compression(self.tilt) @ _square(self._turned(size)[0]))[:2]

    def _turned(self, size: tuple[int, int]) -> tuple[Affine2, tuple[int, int]]:
        """The rotation, and (width, height) of the smallest upright box around the rotated photo."""
        c, s = cos(radians(self.rotation)), sin(radians(self.rotation))
        linear = np.array([[c, s], [-s, c]])
        corners = linear @ np.array([[0, size[0], 0, size[0]], [0, 0, size[1], size[1]]], np.float64)
        # Of the corners of pixels, half a pixel before their centres. What rounding leaves is not another pixel.
        shift = linear @ [0.5, 0.5] - corners.min(1) - 0.5
        width, height = np.ceil(np.ptp(corners, axis=1) - 1e-9).astype(int).tolist()
        return np.column_stack([linear, shift]), (width, height)

    def render(self, grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The photo from this direction: rotated, blurred along x against aliasing, and compressed along x.

        Beyond the border of the photo its outermost pixels are repeated.

        Args:
            grey: (H, W) uint8.
        """
        turn, size = self._turned((grey.shape[1], grey.shape[0]))
        turned = cv2.warpAffine(grey, turn, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        if self.tilt == 1:
            return np.asarray(turned, np.uint8)
        sigma = _ANTI_ALIASING * sqrt(self.tilt**2 - 1)
        kernel = cv2.getGaussianKernel(2 * ceil(4 * sigma) + 1, sigma)
        blurred = cv2.sepFilter2D(turned, -1, kernel, np.ones(1), borderType=cv2.BORDER_REPLICATE)
        compressed = cv2.warpAffine(
            blurred,
            _compression(self.tilt)[:2],
            (ceil(size[0] / self.tilt), size[1]),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return np.asarray(compressed, np.uint8)

    def back(self, found: Keypoints, size: tuple[int, int]) -> tuple[Keypoints, NDArray[np.intp]]:
        """Keypoints of the view in pixels of the photo, without those too close to the photo's border.

        Args:
            found: N keypoints in pixels of the view.
            size: (width, height) of the photo.

        Returns:
            M keypoints with local affine frames, each the product of the inverse view and the frame in the view; and
            their rows in `found`, rising.
        """
        back = np.linalg.inv(_square(self.photo_to_view(size)))
        linear = back[:2, :2]
        xy = found.xy @ linear.T + back[:2, 2]
        # A circle of the view is an ellipse in the photo, as far as the rows of the map are long.
        reach = _SIGMAS_INSIDE * found.scales[:, None] * np.linalg.norm(linear, axis=1)
        rows = np.flatnonzero(((xy - reach >= -0.5) & (xy + reach <= np.array(size) - 0.5)).all(1))
        return with_frames(xy[rows], linear @ found.frames()[rows], found.scores[rows]), rows

    def turned(self, found: Keypoints, turn: float = 0) -> Keypoints:
        """Upright keypoints of the view, oriented along what is upright in the photo, as the view shows it.

        Args:
            found: in pixels of the view, all with orientation 0.
            turn: orientation of what is upright in the photo, degrees.
        """
        c, s = cos(radians(turn - self.rotation)) / self.tilt, sin(radians(turn - self.rotation))
        rotation = np.array([[c, -s], [s, c]]) / sqrt(c**2 + s**2)
        return with_frames(found.xy, found.frames() @ rotation, found.scores)


def views_of(tilt: float, rotation_step: float) -> tuple[View, ...]:
    """The views of one tilt: a half turn in equal steps of at most `rotation_step` / tilt degrees.

    The more a view is tilted, the faster it changes with the direction (ASIFT: 72 degrees / tilt). The
    other half turn shows the same, upside down.
    """
    count = ceil(180 * tilt / rotation_step - 1e-9)
    return tuple(View(tilt, 180 * number / count) for number in range(count))


def relative_area(tilts: Sequence[float], rotation_step: float) -> float:
    """Area of the photo and its views, in photos: 1 + the sum over tilts t of (number of views of t) / t.

    It is about 1 + 180 / rotation_step for each tilt, whatever the tilts are: 3.5, 6, 8.5 ... with steps of 72 degrees.
    """
    return 1 + sum(len(views_of(tilt, rotation_step)) / tilt for tilt in tilts)


def with_frames(xy: NDArray[np.floating], frames: NDArray[np.floating], scores: NDArray[np.float32]) -> Keypoints:
    """Keypoints of (N, 2) positions and (N, 2, 2) local affine frames: scale is the root of the frame's area factor,
    orientation that of the image of the x axis."""
    scales = np.sqrt(np.abs(np.linalg.det(frames))).astype(np.float32)
    oris = (np.rad2deg(np.arctan2(frames[:, 1, 0], frames[:, 0, 0])) % 360).astype(np.float32)
    oris[oris >= 360] = 0  # just below 0, rounded
    return Keypoints(xy.astype(np.float32), scales, oris, scores, frames.astype(np.float32))


def joined(*parts: Keypoints) -> Keypoints:
    """All keypoints in one, with local affine frames."""
    columns = ([getattr(part, name) for part in parts] for name in ("xy", "scales", "oris", "scores"))
    xy, scales, oris, scores = map(np.concatenate, columns)
    return Keypoints(xy, scales, oris, scores, np.concatenate([part.frames() for part in parts]))


def same_keypoints(found: Keypoints, known: Keypoints) -> NDArray[np.intp]:
    """Which known keypoint each found one is, (N,) rows of `known`, or -1.

    Of those within 1.5 pixels and a factor of 1.5 in scale, it is the one that is nearest in place and frame together.
    """
    row, other = within_reach(found.xy, known.xy, SAME_PLACE)
    apart = np.linalg.norm(found.xy[row] - known.xy[other], axis=1)
    factor = np.abs(np.log(found.scales[row] / known.scales[other]))
    alike = (apart <= SAME_PLACE) & (factor <= log(_SAME_SCALE))
    row, other, apart = row[alike], other[alike], apart[alike]
    between = np.linalg.norm(found.frames()[row] - known.frames()[other], axis=(1, 2))
    difference = (apart**2 + between**2) / (found.scales[row] * known.scales[other])
    order = np.lexsort((other, difference, row))
    same = np.full(len(found), -1, np.intp)
    first_of, first = np.unique(row[order], return_index=True)
    same[first_of] = other[order][first]
    return same


@dataclass(frozen=True, eq=False)
class DescribedViews:
    """What was found in some views of a photo.

    Attributes:
        keypoints: K that the photo did not have before, in its pixels, with local affine frames.
        ends: (V,) int64: where the descriptions of each view end.
        rows: (M,) int32: which of the photo's keypoints each description is of; those from before are counted first.
        descriptors: (M, D) float16, of unit length.
    """

    keypoints: Keypoints
    ends: NDArray[np.int64]
    rows: NDArray[np.int32]
    descriptors: NDArray[np.float16]


class ViewDescriber:
    """Detects and describes keypoints in views of photos, as `extract` does in the photos; for any number of threads.

    A view may have as many keypoints as its share of the photo's area.

    Args:
        options: how features of the photos were made.
        resources: how much of the machine.

    Attributes:
        recipe: everything that decides what the features are, as stores have it in their header.

    Raises:
        HardnetSfmError: weights that do not fit.
        UsageError: contradictory options.
    """

    def __init__(self, options: ExtractOptions, resources: Resources) -> None:
        from hardnet_sfm.features.descriptors import PatchDescriber, make_descriptor
        from hardnet_sfm.networks.device import resolve_device

        options.check()
        descriptor = make_descriptor(options.descriptor, options.weights)
        self.recipe = options.recipe(descriptor.weights_sha256)
        self._options = options
        self._describe = PatchDescriber(descriptor, resolve_device(resources.device))

    def __call__(self, photo: Photo, known: Keypoints, views: Sequence[View], turn: int = 0) -> DescribedViews:
        """Describes views one after another.

        A keypoint that is the same as one of the photo, or of a view before it, is another description of that one.

        Args:
            photo: of any size.
            known: N keypoints of the photo, in its pixels.
            views: directions.
            turn: where orientation is "upright": what is upright in the photo, degrees.
        """
        grey = resize_to_fit(photo.grey, self._options.max_image_size)
        size = grey.shape[1], grey.shape[0]
        detectors = {tilt: self._detector(tilt) for tilt in {view.tilt for view in views}}
        keypoints, rows, descriptors = known, [], []
        for view in views:
            image = view.render(grey)
            found = detectors[view.tilt](image)
            if self._options.orientation == "upright":
                found = view.turned(found, turn)
            back, inside = view.back(found, size)
            descriptors.append(self._describe.at(image, found.select(inside)))
            back = back.resized(size, photo.size)
            same = same_keypoints(back, keypoints)
            new = np.flatnonzero(same < 0)
            same[new] = len(keypoints) + np.arange(len(new))
            keypoints = joined(keypoints, back.select(new))
            rows.append(same.astype(np.int32))
        ends = np.cumsum([len(of_view) for of_view in rows])
        new = np.arange(len(known), len(keypoints))
        return DescribedViews(keypoints.select(new), ends, np.concatenate(rows), np.concatenate(descriptors))

    def _detector(self, tilt: float) -> Detect:
        most = max(1, round(self._options.max_keypoints / tilt))
        return make_detector(self._options.detector, detector_options(self._options, most))


def _compression(tilt: float) -> Affine2:
    """(3, 3): x shortened by a tilt, about the left border of the leftmost pixel."""
    return np.array([[1 / tilt, 0, 0.5 / tilt - 0.5], [0, 1, 0], [0, 0, 1]])


def _square(affine: Affine2) -> Affine2:
    return np.vstack([affine, [0, 0, 1]])
