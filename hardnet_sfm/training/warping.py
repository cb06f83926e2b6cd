"""Training patches of one photo: it is warped by random homographies, and its keypoints are found again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import UsageError, check_above, check_least
from hardnet_sfm.files.patch_sets import PATCH_SIZE
from hardnet_sfm.keypoints import Float32, Keypoints, within_reach
from hardnet_sfm.patches import extract_patches

_EXTENT = 1000.0  # pixels
Grey = NDArray[np.uint8]
Detect = Callable[[Grey], Keypoints]
Homography = NDArray[np.float64]


@dataclass(frozen=True)
class WarpOptions:
    """Views that are made of each photo, and which points count as found again."""

    views: int = 5
    """Warped copies of each photo."""
    still: float = 0.3
    """Share of the views that are not warped, only in other light, blurred, noisy or compressed."""
    points: int = 1500
    """At most so many points of a photo, drawn by chance from those found again in some view."""
    max_keypoints: int = 4000
    """Keypoints that are looked for in each view, the strongest."""
    max_image_size: int = 1200
    """Larger photos are shrunk, longer side, pixels."""
    detector: str = "opencv-dog"
    """What finds the points."""
    measurement_size: float = 20.0
    """Sigmas of the keypoint across a patch. 20 as the shipped weights have; 12 is usual in the literature."""
    max_distance: float = 0.6
    """From where the homography puts a keypoint to where it is found again, sigmas, and at most 3 pixels."""
    max_scale: float = 0.4
    """Difference of the scales, octaves."""
    max_turn: float = 25.0
    """Difference of the orientations, degrees."""
    seed: int = 0
    """Of everything that is drawn by chance."""

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        check_least(self, views=1, points=2, max_keypoints=2, max_image_size=64, seed=0)
        check_above(self, measurement_size=0, max_distance=0, max_scale=0, max_turn=0)
        if not 0 <= self.still <= 1:
            raise UsageError("--still must be from 0 to 1")


@dataclass(frozen=True)
class WarpedPatches:
    """Patches of one photo's points, as they look in the photo and in its warped views.

    Attributes:
        patches: (N, S, S) uint8.
        point: (N,) int64, number of the point within this photo; each occurs at least twice.
        view: (N,) int32, 0 for the photo itself, then the warped ones.
        frame: (N, 2, 3) float32, local affine frame and position in the pixels of the view.
        xy: (P, 2) float32, position of each point in the photo.
    """

    patches: Grey
    point: NDArray[np.int64]
    view: NDArray[np.int32]
    frame: Float32
    xy: Float32


def warped_patches(grey: Grey, detect: Detect, options: WarpOptions, rng: np.random.Generator) -> WarpedPatches:
    """Finds keypoints in a photo and again in warped and spoilt views of it, and cuts patches around both.

    A patch is cut by the frame that the detector found in its own view, so that position, scale and orientation err
    as they do between real photos.

    Args:
        grey: (H, W) uint8.
        detect: as features.detectors makes them.
        options: how.
        rng: what is drawn by chance.
    """
    found = detect(grey)
    views, keypoints, rows = [grey], [found], [np.arange(len(found))]
    for _ in range(options.views):
        still = rng.random() < options.still
        homography = np.eye(3) if still else random_homography((grey.shape[1], grey.shape[0]), rng)
        views.append(spoilt(warped(grey, homography), rng))
        seen = detect(views[-1])
        first, second = found_again(found, seen, homography, options)
        keypoints.append(seen.select(second))
        rows.append(first)
    again = np.unique(np.concatenate([np.zeros(0, np.intp), *rows[1:]]))
    chosen = np.sort(rng.permutation(again)[: options.points])
    number = np.full(len(found), -1)
    number[chosen] = np.arange(len(chosen))
    parts = []
    for number_of_view, (image, seen, first) in enumerate(zip(views, keypoints, rows, strict=True)):
        kept = np.flatnonzero(number[first] >= 0)
        kept = kept[np.unique(first[kept], return_index=True)[1]]
        these = seen.select(kept)
        frames = these.frames()
        patches = extract_patches(image, these.xy, frames, PATCH_SIZE, options.measurement_size)
        frames = np.concatenate([frames, these.xy[:, :, None]], 2)
        parts.append((patches, number[first[kept]], np.full(len(kept), number_of_view), frames))
    patches, point, view, frame = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(point, kind="stable")
    return WarpedPatches(
        patches[order], point[order].astype(np.int64), view[order].astype(np.int32), frame[order], found.xy[chosen]
    )


def random_homography(size: tuple[int, int], rng: np.random.Generator) -> Homography:
    """A view of a plane from elsewhere: turned, tilted, nearer or farther, with perspective; the centre stays.

    The tilt is a compression in one direction, up to 2.5 (Morel and Yu, ASIFT, 2009, equation 1).

    Args:
        size: (width, height) of the photo and of the view.
        rng: turn by 20 degrees (standard deviation), scale 0.5 to 1.6, tilt 1 to 2.5, each evenly in its logarithm.
    """
    turn, direction = np.deg2rad(rng.normal(0, 20)), rng.uniform(0, np.pi)
    scale, tilt = np.exp(rng.uniform(np.log(0.5), np.log(1.6))), np.exp(rng.uniform(0, np.log(2.5)))
    middle = np.sqrt(tilt)
    linear = scale * _rotation(turn + direction) @ np.diag([middle, 1 / middle]) @ _rotation(-direction)
    homography = np.eye(3)
    homography[:2, :2] = linear
    homography[2, :2] = rng.uniform(-0.25, 0.25, 2) / max(size)
    centre = np.eye(3)
    centre[:2, 2] = (np.array(size) - 1) / 2
    return np.asarray(centre @ homography @ np.linalg.inv(centre))


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def warped(grey: Grey, homography: Homography) -> Grey:
    """(H, W) uint8, the photo through a homography, blurred before as far as it shrinks; its borders are mirrored."""
    height, width = grey.shape
    linear = jacobians(homography, np.array([[(width - 1) / 2, (height - 1) / 2]]))[0]
    shrinking = 1 / np.linalg.svd(linear, compute_uv=False)
    # The blur of a pixel of the view, taken to the photo, less the blur that a photo's own pixel has (sigma 0.5).
    covariance = np.linalg.inv(linear) @ np.linalg.inv(linear).T * 0.25 - 0.25 * np.eye(2)
    if shrinking.max() > 1:
        grey = _blurred(grey, covariance)
    view = cv2.warpPerspective(grey, homography, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(view, np.uint8)


def _blurred(grey: Grey, covariance: NDArray[np.float64]) -> Grey:
    """Convolution with a Gaussian of the given covariance, square pixels; directions that it shrinks stay sharp."""
    values, vectors = np.linalg.eigh(covariance)
    values = values.clip(0.01)
    inverse = vectors @ np.diag(1 / values) @ vectors.T
    radius = int(np.ceil(3 * np.sqrt(values.max())))
    grid = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * 2), -1)
    kernel = np.exp(-0.5 * np.einsum("yxi,ij,yxj->yx", grid, inverse, grid))
    return np.asarray(cv2.filter2D(grey, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101), np.uint8)


def spoilt(grey: Grey, rng: np.random.Generator) -> Grey:
    """(H, W) uint8, the photo in other light, out of focus or shaken, noisy and compressed, each more or less.

    Args:
        grey: (H, W) uint8.
        rng: half of the views are blurred, with sigma 0.5 to 5 pixels or by motion of 3 to 15; half are compressed to
            JPEG of quality 6 to 80; gamma is 0.5 to 2, gain 0.5 to 1.3, noise up to 10 grey levels.
    """
    height, width = grey.shape
    if rng.random() < 0.5:
        along = across = np.exp(rng.uniform(np.log(0.5), np.log(5))) ** 2
        if rng.random() < 0.3:
            # Motion of constant speed has a twelfth of its squared length as variance.
            along, across = rng.uniform(3, 15) ** 2 / 12, 0.25
        turn = _rotation(rng.uniform(0, np.pi))
        grey = _blurred(grey, turn @ np.diag([along, across]) @ turn.T)
    light = (grey / np.float32(255)) ** np.float32(np.exp(rng.uniform(np.log(0.5), np.log(2))))
    slope = rng.uniform(-0.4, 0.4, 2)
    shade = 1 + slope[0] * np.linspace(-1, 1, width)[None] + slope[1] * np.linspace(-1, 1, height)[:, None]
    light = light * shade.astype(np.float32) * np.float32(255 * rng.uniform(0.5, 1.3))
    light += rng.normal(0, rng.uniform(0, 10), grey.shape).astype(np.float32)
    result = np.asarray(np.rint(light).clip(0, 255), np.uint8)
    if rng.random() < 0.5:
        quality = int(np.exp(rng.uniform(np.log(6), np.log(80))))
        _, packed = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, quality])
        result = np.asarray(cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE), np.uint8)
    return result


def through(homography: Homography, xy: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, 2) positions through a homography."""
    homogeneous = np.column_stack([xy, np.ones(len(xy))]) @ homography.T
    return np.asarray(homogeneous[:, :2] / homogeneous[:, 2:])


def jacobians(homography: Homography, xy: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, 2, 2) derivative of a homography at (N, 2) positions (Hartley and Zisserman, 2nd edition, section 4.2)."""
    depth = np.column_stack([xy, np.ones(len(xy))]) @ homography[2]
    derivative = homography[None, :2, :2] - through(homography, xy)[:, :, None] * homography[2, :2]
    return np.asarray(derivative / depth[:, None, None])


def found_again(
    first: Keypoints, second: Keypoints, homography: Homography, options: WarpOptions
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row numbers of keypoints of a photo and of those of its warped view that are the same points.

    A point is the nearest one that agrees in position, scale and orientation, in both directions.
    """
    if not len(first) or not len(second):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    expected = through(homography, first.xy)
    scale, turn = _scale_and_turn(jacobians(homography, first.xy) @ first.frames())
    seen_scale, seen_turn = _scale_and_turn(second.frames())
    reach = np.minimum(3, options.max_distance * scale)
    row, column = within_reach(expected, second.xy, reach)
    # In units of what is allowed, so that position, scale and orientation count alike.
    differences = np.stack(
        [
            np.linalg.norm(expected[row] - second.xy[column], axis=1) / reach[row],
            np.abs(np.log2(seen_scale[column] / scale[row])) / options.max_scale,
            np.abs((seen_turn[column] - turn[row] + 180) % 360 - 180) / options.max_turn,
        ]
    )
    agree = differences.max(0) <= 1
    row, column, cost = row[agree], column[agree], differences[:, agree].sum(0)
    by_cost = np.argsort(-cost, kind="stable")
    nearest, nearest_back = np.full(len(first), -1), np.full(len(second), -1)
    # The last of several written to one place stays: the cheapest.
    nearest[row[by_cost]], nearest_back[column[by_cost]] = column[by_cost], row[by_cost]
    mutual = np.flatnonzero((nearest >= 0) & (nearest_back[nearest] == np.arange(len(first))))
    return mutual, nearest[mutual]


def _scale_and_turn(frames: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """(N,) pixels per sigma and (N,) degrees of the x axis of (N, 2, 2) local affine frames."""
    return np.sqrt(np.abs(np.linalg.det(frames))), np.rad2deg(np.arctan2(frames[:, 1, 0], frames[:, 0, 0]))
