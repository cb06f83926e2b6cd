"""Synthetic views of a photo, which show its surfaces as if they were tilted. Their keypoints are mapped back.

The method follows ASIFT (Morel and Yu, ASIFT: A new framework for fully affine invariant image comparison, SIAM J.
Imaging Sciences 2009). A detector and descriptor are invariant to some changes themselves. Apart from these, an affine
view is a tilt t in a direction phi.
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
from hardnet_sfm.keypoints import Keypoints, join_keypoints, within_reach
from hardnet_sfm.photos import Affine2, Photo, resize_to_fit
from hardnet_sfm.resources import Resources

# Sigma of the blur before a tilt, divided by sqrt(t^2 - 1), pixels. It turns a blur of 0.8 pixels into one of 0.8 t
# (ASIFT).
_ANTI_ALIASING = 0.8
# A keypoint is dropped if a circle of this many of its sigmas leaves the photo. Its patch lies within the circle.
_SIGMAS_INSIDE = 6.0
# Two keypoints are the same if their distance is at most this, pixels, and the ratio of their scales at most this.
SAME_PLACE = 1.5
_SAME_SCALE = 1.5


@dataclass(frozen=True)
class View:
    """A direction from which a synthetic view shows a photo.

    Attributes:
        tilt: factor, above 1, by which one direction appears shortened: 1 / cos of the angle of the plane's tilt.
        rotation: degrees from x towards y (down): the direction that is not shortened is (-sin, cos) of this angle.
    """

    tilt: float
    rotation: float

    def photo_to_view(self, size: tuple[int, int]) -> Affine2:
        """Returns the (2, 3) affine map from pixels of a photo of (width, height) to pixels of the view.

        Pixel centres are at integers. The map is diag(1 / t, 1) R(-phi) about the corner, shifted so that the view has
        no negative positions.
        """
        return (_compression(self.tilt) @ _square(self._turned(size)[0]))[:2]

    def _turned(self, size: tuple[int, int]) -> tuple[Affine2, tuple[int, int]]:
        """Returns the rotation, and (width, height) of the smallest upright box around the rotated photo."""
        c, s = cos(radians(self.rotation)), sin(radians(self.rotation))
        linear = np.array([[c, s], [-s, c]])
        corners = linear @ np.array([[0, size[0], 0, size[0]], [0, 0, size[1], size[1]]], np.float64)
        # Corners of pixels are half a pixel before their centres. The 1e-9 keeps rounding errors from adding a pixel.
        shift = linear @ [0.5, 0.5] - corners.min(1) - 0.5
        width, height = np.ceil(np.ptp(corners, axis=1) - 1e-9).astype(int).tolist()
        return np.column_stack([linear, shift]), (width, height)

    def render(self, grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Renders the photo from this direction.

        It rotates the photo, blurs it along x against aliasing, and compresses it along x. The outermost pixels are
        repeated beyond the border of the photo.

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
        """Maps keypoints of the view to pixels of the photo, and drops those too close to the photo's border.

        Args:
            found: N keypoints in pixels of the view.
            size: (width, height) of the photo.

        Returns:
            M keypoints with local affine frames, and their rows in `found`, rising. Each frame is the product of the
            inverse view and the frame in the view.
        """
        back = np.linalg.inv(_square(self.photo_to_view(size)))
        linear = back[:2, :2]
        xy = found.xy @ linear.T + back[:2, 2]
        # A circle in the view is an ellipse in the photo. It extends as far along x and y as the rows of the map are
        # long.
        reach = _SIGMAS_INSIDE * found.scales[:, None] * np.linalg.norm(linear, axis=1)
        rows = np.flatnonzero(((xy - reach >= -0.5) & (xy + reach <= np.array(size) - 0.5)).all(1))
        return make_keypoints(xy[rows], linear @ found.frames()[rows], found.scores[rows]), rows

    def turned(self, found: Keypoints, turn: float = 0) -> Keypoints:
        """Orients upright keypoints of the view along the photo's upright direction, as it appears in the view.

        Args:
            found: keypoints in pixels of the view, all with orientation 0.
            turn: direction that is upright in the photo, degrees.
        """
        c, s = cos(radians(turn - self.rotation)) / self.tilt, sin(radians(turn - self.rotation))
        rotation = np.array([[c, -s], [s, c]]) / sqrt(c**2 + s**2)
        return make_keypoints(found.xy, found.frames() @ rotation, found.scores)


def choose_views(tilt: float, rotation_step: float) -> tuple[View, ...]:
    """Returns the views of one tilt: a half turn in equal steps of at most `rotation_step` / tilt degrees.

    The more a view is tilted, the faster it changes with the direction (ASIFT: 72 degrees / tilt). The other half turn
    shows the same views upside down.
    """
    count = ceil(180 * tilt / rotation_step - 1e-9)
    return tuple(View(tilt, 180 * number / count) for number in range(count))


def relative_area(tilts: Sequence[float], rotation_step: float) -> float:
    """Returns the area of the photo and its views, in photos: 1 + the sum over tilts t of (number of views of t) / t.

    Each tilt adds about 180 / rotation_step, whatever the tilt is. So steps of 72 degrees give 3.5, 6, 8.5 ...
    """
    return 1 + sum(len(choose_views(tilt, rotation_step)) / tilt for tilt in tilts)


def make_keypoints(xy: NDArray[np.floating], frames: NDArray[np.floating], scores: NDArray[np.float32]) -> Keypoints:
    """Makes keypoints of (N, 2) positions and (N, 2, 2) local affine frames.

    The scale is the root of the frame's area factor. The orientation is that of the image of the x axis.
    """
    scales = np.sqrt(np.abs(np.linalg.det(frames))).astype(np.float32)
    oris = (np.rad2deg(np.arctan2(frames[:, 1, 0], frames[:, 0, 0])) % 360).astype(np.float32)
    oris[oris >= 360] = 0  # angles just below 0 round to 360
    return Keypoints(xy.astype(np.float32), scales, oris, scores, frames.astype(np.float32))


def find_same_keypoints(found: Keypoints, known: Keypoints) -> NDArray[np.intp]:
    """Returns the known keypoint that equals each found one: (N,) rows of `known`, or -1.

    Among known keypoints within 1.5 pixels and a factor of 1.5 in scale, it is the nearest in place and frame together.
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
    """Keypoints and descriptions from some views of a photo.

    Attributes:
        keypoints: K keypoints that the photo did not have before, in its pixels, with local affine frames.
        ends: (V,) int64, end of the descriptions of each view.
        rows: (M,) int32, row of the photo's keypoint of each description; earlier keypoints are counted first.
        descriptors: (M, D) float16, of unit length.
    """

    keypoints: Keypoints
    ends: NDArray[np.int64]
    rows: NDArray[np.int32]
    descriptors: NDArray[np.float16]


class ViewDescriber:
    """Detects and describes keypoints in views of photos, like `extract` in the photos themselves.

    Several threads may call it at once. The limit on keypoints of a view is proportional to the view's share of the
    photo's area.

    Args:
        options: options that the features of the photos were made with.
        resources: how much of the machine to use.

    Attributes:
        recipe: everything that the features depend on, as in the header of a store.

    Raises:
        HardnetSfmError: the weights do not fit.
        UsageError: the options contradict each other.
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

        A keypoint may equal one of the photo or of an earlier view. Then it counts as another description of that
        keypoint.

        Args:
            photo: a photo of any size.
            known: N keypoints of the photo, in its pixels.
            views: directions of the views.
            turn: direction that is upright in the photo, degrees; used if orientation is "upright".
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
            same = find_same_keypoints(back, keypoints)
            new = np.flatnonzero(same < 0)
            same[new] = len(keypoints) + np.arange(len(new))
            keypoints = join_keypoints(keypoints, back.select(new))
            rows.append(same.astype(np.int32))
        ends = np.cumsum([len(of_view) for of_view in rows])
        new = np.arange(len(known), len(keypoints))
        return DescribedViews(keypoints.select(new), ends, np.concatenate(rows), np.concatenate(descriptors))

    def _detector(self, tilt: float) -> Detect:
        most = max(1, round(self._options.max_keypoints / tilt))
        return make_detector(self._options.detector, detector_options(self._options, most))


def _compression(tilt: float) -> Affine2:
    """Returns the (3, 3) map that shortens x by a tilt, about the left border of the leftmost pixel."""
    return np.array([[1 / tilt, 0, 0.5 / tilt - 0.5], [0, 1, 0], [0, 0, 1]])


def _square(affine: Affine2) -> Affine2:
    return np.vstack([affine, [0, 0, 1]])
