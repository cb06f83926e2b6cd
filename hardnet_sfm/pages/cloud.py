"""Prepares a model for drawing on a page: it is turned upright, thinned and quantised within a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float64
from hardnet_sfm.pages.page import pack_array
from hardnet_sfm.photos import sensor_from_upright

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does without
    from hardnet_sfm.colmap.tracks import Tracks

MOST_POINTS = 200_000
# The box to draw ignores this share of the points on either side. A few far points would shrink the rest to a dot.
_FAR = 0.01
_STEPS = 65535


def make_cloud(tracks: Tracks, orientations: Sequence[int], most: int = MOST_POINTS) -> dict[str, Any]:
    """Collects the points of a model and its cameras as pyramids for a page, with z up.

    Coordinates of points are uint16 along each side of the box, which is precise enough for a window of any size.

    Args:
        tracks: tracks of P points in V photos.
        orientations: (V,) EXIF orientation of each photo.
        most: largest number of points to keep.
    """
    turn = find_upright_turn(tracks.cam_from_world, orientations)
    xyz, lengths = tracks.xyz @ turn.T, tracks.lengths()
    target, reach = _choose_subject(xyz[tracks.point], tracks.centres() @ turn.T)
    tips, corners = _make_pyramids(tracks, turn, reach)
    low, high = _find_box(xyz)
    inside = np.flatnonzero(((xyz >= low) & (xyz <= high)).all(axis=1))
    kept, cell = thin(xyz[inside], lengths[inside], most)
    rows = inside[kept]
    steps = (xyz[rows] - low) / (high - low) * _STEPS
    return {
        "xyz": pack_array(steps.round().astype(np.uint16)),
        "rgb": pack_array(tracks.colours[rows]),
        "low": low.tolist(),
        "high": high.tolist(),
        "points": len(xyz),
        "outside": len(xyz) - len(inside),
        "shown": len(rows),
        "cell": cell,
        "target": target.tolist(),
        "reach": reach,
        "tips": tips.round(5).tolist(),
        "corners": corners.round(5).tolist(),
    }


def find_upright_turn(cam_from_world: Float64, orientations: Sequence[int]) -> Float64:
    """Computes a (3, 3) rotation of the world after which z points up and y points away from the viewer.

    A model has no up direction of its own. The mean of the up directions of its upright photos approximates it. The y
    axis follows the mean viewing direction of the photos.

    Args:
        cam_from_world: (V, 3, 4) poses of the photos as they are stored in their files.
        orientations: (V,) EXIF orientation of each photo, which says where up is in it.
    """
    ups_in_photo = [sensor_from_upright(orientation, (1, 1))[:, :2] @ (0, -1) for orientation in orientations]
    ups = np.einsum("vi,vij->vj", np.array(ups_in_photo), cam_from_world[:, :2, :3])
    up = ups.mean(axis=0)
    if np.linalg.norm(up) < 1e-3:
        up = ups[0]
    up /= np.linalg.norm(up)
    ahead = cam_from_world[:, 2, :3].mean(axis=0)
    ahead -= (ahead @ up) * up
    if np.linalg.norm(ahead) < 1e-3:  # the cameras surround the subject, so any direction is possible
        ahead = np.eye(3)[np.abs(up).argmin()]
        ahead -= (ahead @ up) * up
    ahead /= np.linalg.norm(ahead)
    return np.stack([np.cross(ahead, up), ahead, up])


def thin(xyz: Float64, lengths: NDArray[np.int64], most: int) -> tuple[NDArray[np.intp], float]:
    """Thins points by a grid: in each cell, only the point with the longest track stays.

    The grid is the finest one that keeps no more than `most` points.

    Args:
        xyz: (P, 3) points.
        lengths: (P,) track lengths.
        most: largest number of points to keep.

    Returns:
        Rising row numbers of the kept points, and the side of a cell; 0 if all points are kept.
    """
    if len(xyz) <= most:
        return np.arange(len(xyz)), 0.0
    longest_first = np.argsort(-lengths, kind="stable")
    from_corner = xyz[longest_first] - xyz.min(axis=0)
    extent = max(float(from_corner.max()), 1e-12)
    coarse, fine = 1, 2**20  # cells along the longest side; a grid of one cell always keeps few enough
    kept = longest_first[:1]
    while fine - coarse > max(1, coarse // 200):
        middle = (coarse + fine) // 2
        cells = np.minimum((from_corner * (middle / extent)).astype(np.int64), middle - 1)
        _, first = np.unique((cells[:, 0] << 40) | (cells[:, 1] << 20) | cells[:, 2], return_index=True)
        if len(first) <= most:
            coarse, kept = middle, longest_first[first]
        else:
            fine = middle
    return np.sort(kept), extent / coarse


def _find_box(xyz: Float64) -> tuple[Float64, Float64]:
    """Computes the corners of the box to draw: it holds nearly all points, plus a quarter more on each side."""
    low, high = np.quantile(xyz, [_FAR, 1 - _FAR], axis=0)
    air = 0.25 * max(float((high - low).max()), 1e-6)
    return low - air, high + air


def _choose_subject(observed: Float64, tips: Float64) -> tuple[Float64, float]:
    """Chooses the initial view: the median of the observed points, and the radius of points and cameras around it.

    Args:
        observed: (N, 3) the point of each observation. A point thus counts once for each photo that sees it.
        tips: (V, 3) centres of the cameras.
    """
    target = np.median(observed, axis=0)
    of_points, of_tips = (np.linalg.norm(some - target, axis=1) for some in (observed, tips))
    # One or two wrong cameras far away must not shrink the rest to a dot.
    of_most_tips = min(np.quantile(of_tips, 0.95), 3 * np.median(of_tips))
    return target, float(max(np.quantile(of_points, 0.6), of_most_tips, 1e-9))


def _make_pyramids(tracks: Tracks, turn: Float64, reach: float) -> tuple[Float64, Float64]:
    """Computes the (V, 3) tips and (V, 4, 3) corners of pyramids that show the viewing direction of each photo.

    The depth of a pyramid is half the median distance of consecutive cameras. It is limited so that a pyramid is
    visible but does not hide the points.
    """
    tips = tracks.centres() @ turn.T
    apart = np.linalg.norm(np.diff(tips, axis=0), axis=1)
    depth = float(np.clip(0.5 * np.median(apart) if len(apart) else 0.0, 0.025 * reach, 0.12 * reach))
    # The pyramids of wide lenses would otherwise cover everything.
    corners = tracks.corners.clip(-1.5, 1.5)
    in_camera = np.concatenate([corners, np.ones((len(tips), 4, 1))], 2) * depth
    world = np.einsum("vji,vcj->vci", tracks.cam_from_world[:, :, :3], in_camera) @ turn.T
    return tips, tips[:, None] + world
