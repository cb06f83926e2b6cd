"""Makes training patches from one photo: random homographies warp it, and a detector finds its keypoints again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32, Grey
from hardnet_sfm.errors import UsageError, check_above, check_least
from hardnet_sfm.keypoints import Keypoints, within_reach
from hardnet_sfm.patch_set import PATCH_SIZE
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.training.relighting import relight

_EXTENT = 1000.0  # pixels
Detect = Callable[[Grey], Keypoints]
Homography = NDArray[np.float64]


@dataclass(frozen=True)
class WarpOptions:
    """How each photo is warped, and which points count as found again."""

    views: int = 5
    """Number of warped copies of each photo."""
    still: float = 0.3
    """Share of the copies that keep their geometry. They differ only in light, blur, noise or compression."""
    relit: float = 0.0
    """Share of the copies that are taken in another light and by another sensor: with shadows, at night, with clipped
    highlights, with other local contrast, and with colours seen differently."""
    points: int = 1500
    """Most points per photo, drawn at random from those that were found again in some copy."""
    max_keypoints: int = 4000
    """Most keypoints in the photo and in each of its copies; the strongest are kept."""
    max_image_size: int = 1200
    """Shrink larger photos until no side is longer than this, in pixels."""
    detector: str = "opencv-dog"
    """Keypoint detector, as in `extract`."""
    measurement_size: float = 20.0
    """Side of a patch, in sigmas of the keypoint. The shipped weights use 20; 12 is usual in the literature."""
    max_distance: float = 0.6
    """Largest distance between the expected and the found place of a keypoint, in sigmas. It is never above 3
    pixels."""
    max_scale: float = 0.4
    """Largest difference between the expected and the found scale, in octaves."""
    max_turn: float = 25.0
    """Largest difference between the expected and the found orientation, in degrees."""
    seed: int = 0
    """Random seed for the copies and the choice of points."""

    def check(self) -> None:
        """Raises UsageError if a value is invalid."""
        check_least(self, views=1, points=2, max_keypoints=2, max_image_size=64, seed=0)
        check_above(self, measurement_size=0, max_distance=0, max_scale=0, max_turn=0)
        for name in ("still", "relit"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"--{name} must be from 0 to 1")


@dataclass(frozen=True)
class WarpedPatches:
    """Patches of the points of one photo, cut from the photo and from its warped views.

    Attributes:
        patches: (N, S, S) uint8 patches.
        point: (N,) int64, number of the point within this photo; each point occurs at least twice.
        view: (N,) int32, number of the view; 0 is the photo itself.
        frame: (N, 2, 3) float32, local affine frame and position in pixels of the view.
        xy: (P, 2) float32, position of each point in the photo.
    """

    patches: Grey
    point: NDArray[np.int64]
    view: NDArray[np.int32]
    frame: Float32
    xy: Float32


def cut_warped_patches(
    grey: Grey,
    detect: Detect,
    options: WarpOptions,
    rng: np.random.Generator,
    colours: NDArray[np.uint8] | None = None,
) -> WarpedPatches:
    """Finds keypoints in a photo and again in its warped and degraded views, and cuts patches in all of them.

    Each patch is cut by the frame that the detector found in its own view. Position, scale and orientation therefore
    have the same errors as between real photos.

    Args:
        grey: (H, W) uint8 photo.
        detect: detector from `features.detectors`.
        options: views, and tolerances for keypoints that are found again.
        rng: source of random numbers.
        colours: (H, W, 3) uint8 RGB, the same photo; needed if some views are relit.
    """
    found = detect(grey)
    views, keypoints, rows = [grey], [found], [np.arange(len(found))]
    for _ in range(options.views):
        still = rng.random() < options.still
        homography = np.eye(3) if still else random_homography((grey.shape[1], grey.shape[0]), rng)
        seen_as = grey
        if colours is not None and rng.random() < options.relit:
            seen_as = relight(colours, rng)
        views.append(degrade(warp_image(seen_as, homography), rng))
        seen = detect(views[-1])
        first, second = find_again(found, seen, homography, options)
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
    """Draws a homography that rotates, tilts and scales a photo and adds perspective. The centre stays fixed.

    The tilt is a compression in one direction by up to 2.5 (Morel and Yu, ASIFT, 2009, equation 1).

    Args:
        size: (width, height) of the photo and of the view.
        rng: source of random numbers. The rotation is normal with a standard deviation of 20 degrees. The scale is in
            0.5 to 1.6 and the tilt in 1 to 2.5, both uniform in the logarithm.
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


def warp_image(grey: Grey, homography: Homography) -> Grey:
    """(H, W) uint8: warps a photo by a homography. It is blurred first against aliasing; its borders are mirrored."""
    height, width = grey.shape
    linear = jacobians(homography, np.array([[(width - 1) / 2, (height - 1) / 2]]))[0]
    shrinking = 1 / np.linalg.svd(linear, compute_uv=False)
    # A pixel has a blur of sigma 0.5. The pixel blur of the view, mapped to the photo, minus the photo's own pixel blur
    # is the blur to add.
    covariance = np.linalg.inv(linear) @ np.linalg.inv(linear).T * 0.25 - 0.25 * np.eye(2)
    if shrinking.max() > 1:
        grey = _blurred(grey, covariance)
    view = cv2.warpPerspective(grey, homography, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(view, np.uint8)


def _blurred(grey: Grey, covariance: NDArray[np.float64]) -> Grey:
    """Convolves with a Gaussian of the given covariance, square pixels; directions of negative variance stay sharp."""
    values, vectors = np.linalg.eigh(covariance)
    values = values.clip(0.01)
    inverse = vectors @ np.diag(1 / values) @ vectors.T
    radius = int(np.ceil(3 * np.sqrt(values.max())))
    grid = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * 2), -1)
    kernel = np.exp(-0.5 * np.einsum("yxi,ij,yxj->yx", grid, inverse, grid))
    return np.asarray(cv2.filter2D(grey, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101), np.uint8)


def degrade(grey: Grey, rng: np.random.Generator) -> Grey:
    """(H, W) uint8: degrades a photo at random by light, defocus or motion blur, noise and compression.

    Args:
        grey: (H, W) uint8 photo.
        rng: source of random numbers. Half of the views are blurred: 70 % of these with sigma 0.5 to 5 pixels, the
            others by motion of 3 to 15 pixels. Half are compressed to JPEG of quality 6 to 80. Gamma is 0.5 to 2, gain
            0.5 to 1.3, and noise up to 10 grey levels.
    """
    height, width = grey.shape
    if rng.random() < 0.5:
        along = across = np.exp(rng.uniform(np.log(0.5), np.log(5))) ** 2
        if rng.random() < 0.3:
            # The variance of motion at constant speed is a twelfth of its squared length.
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


def map_points(homography: Homography, xy: NDArray[np.floating]) -> NDArray[np.float64]:
    """Maps (N, 2) positions by a homography."""
    homogeneous = np.column_stack([xy, np.ones(len(xy))]) @ homography.T
    return np.asarray(homogeneous[:, :2] / homogeneous[:, 2:])


def jacobians(homography: Homography, xy: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, 2, 2) derivative of a homography at (N, 2) positions (Hartley and Zisserman, 2nd edition, section 4.2)."""
    depth = np.column_stack([xy, np.ones(len(xy))]) @ homography[2]
    derivative = homography[None, :2, :2] - map_points(homography, xy)[:, :, None] * homography[2, :2]
    return np.asarray(derivative / depth[:, None, None])


def find_again(
    first: Keypoints, second: Keypoints, homography: Homography, options: WarpOptions
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Finds the keypoints of a photo that occur again in its warped view. Returns the row numbers in both.

    Two keypoints are the same point if they agree in position, scale and orientation and are mutual nearest neighbours.
    """
    if not len(first) or not len(second):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    expected = map_points(homography, first.xy)
    scale, turn = _scale_and_turn(jacobians(homography, first.xy) @ first.frames())
    seen_scale, seen_turn = _scale_and_turn(second.frames())
    reach = np.minimum(3, options.max_distance * scale)
    row, column = within_reach(expected, second.xy, reach)
    # Differences are relative to their tolerances, so that position, scale and orientation have equal weight.
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
    # If several values are assigned to one place, the last one stays. The order makes it the one with the lowest cost.
    nearest[row[by_cost]], nearest_back[column[by_cost]] = column[by_cost], row[by_cost]
    mutual = np.flatnonzero((nearest >= 0) & (nearest_back[nearest] == np.arange(len(first))))
    return mutual, nearest[mutual]


def _scale_and_turn(frames: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """(N,) scales in pixels per sigma and (N,) x axis directions in degrees of (N, 2, 2) local affine frames."""
    return np.sqrt(np.abs(np.linalg.det(frames))), np.rad2deg(np.arctan2(frames[:, 1, 0], frames[:, 0, 0]))
