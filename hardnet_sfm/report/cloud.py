"""A model as a page draws it: upright, thinned, and in whole numbers within a box."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.colmap.tracks import Float64, Tracks
from hardnet_sfm.report.page import packed

MOST_POINTS = 200_000
# The box that is drawn holds all but this share of the points on either side: a few far ones would make a dot of all.
_FAR = 0.01
_STEPS = 65535


def cloud(tracks: Tracks, most: int = MOST_POINTS) -> dict[str, Any]:
    """The points of a model and its cameras as pyramids, z up, fit for a page.

    Coordinates of points are uint16 along each side of the box, fine enough for a window of any size.
    """
    turn = upright_turn(tracks.cam_from_world)
    xyz, lengths = tracks.xyz @ turn.T, tracks.lengths()
    tips, corners = _pyramids(tracks, turn)
    low, high = _box(xyz, tips)
    inside = np.flatnonzero(((xyz >= low) & (xyz <= high)).all(axis=1))
    kept, cell = thin(xyz[inside], lengths[inside], most)
    rows = inside[kept]
    target, reach = _subject(xyz[tracks.point], tips)
    steps = (xyz[rows] - low) / (high - low) * _STEPS
    return {
        "xyz": packed(steps.round().astype(np.uint16)),
        "rgb": packed(tracks.colours[rows]),
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


def upright_turn(cam_from_world: Float64) -> Float64:
    """(3, 3) turn of the world after which z is up, and y away from the person, as most photos were taken.

    A model has no up of its own: most people hold cameras level, so that the mean of their ups is near to it.
    """
    up = -cam_from_world[:, 1, :3].mean(axis=0)
    if np.linalg.norm(up) < 1e-3:
        up = -cam_from_world[0, 1, :3]
    up /= np.linalg.norm(up)
    ahead = cam_from_world[:, 2, :3].mean(axis=0)
    ahead -= (ahead @ up) * up
    if np.linalg.norm(ahead) < 1e-3:  # all around something: any side will do
        ahead = np.eye(3)[np.abs(up).argmin()]
        ahead -= (ahead @ up) * up
    ahead /= np.linalg.norm(ahead)
    return np.stack([np.cross(ahead, up), ahead, up])


def thin(xyz: Float64, lengths: NDArray[np.int64], most: int) -> tuple[NDArray[np.intp], float]:
    """Leaves one point, that with the longest track, in each cell of the finest grid that leaves no more than `most`.

    Args:
        xyz: (P, 3).
        lengths: (P,) track lengths.
        most: points to keep.

    Returns:
        Row numbers, rising, and the side of a cell; 0 where all points are kept.
    """
    if len(xyz) <= most:
        return np.arange(len(xyz)), 0.0
    longest_first = np.argsort(-lengths, kind="stable")
    from_corner = xyz[longest_first] - xyz.min(axis=0)
    extent = max(float(from_corner.max()), 1e-12)
    coarse, fine = 1, 2**20  # cells along the longest side; the points of one cell are always few enough
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


def _box(xyz: Float64, tips: Float64) -> tuple[Float64, Float64]:
    """Corners of the box that is drawn: nearly all points and all cameras, and some air."""
    points = np.quantile(xyz, [_FAR, 1 - _FAR], axis=0)
    low, high = np.minimum(points[0], tips.min(axis=0)), np.maximum(points[1], tips.max(axis=0))
    air = 0.08 * max(float((high - low).max()), 1e-6)
    return low - air, high + air


def _subject(observed: Float64, tips: Float64) -> tuple[Float64, float]:
    """What to look at first: the middle of what most photos observe, and how far around it cameras and points are.

    Args:
        observed: (N, 3) the point of each observation, so that those seen often count often.
        tips: (V, 3) of the cameras.
    """
    target = np.median(observed, axis=0)
    of_points, of_tips = (np.linalg.norm(some - target, axis=1) for some in (observed, tips))
    return target, float(max(np.quantile(of_points, 0.6), np.quantile(of_tips, 0.95), 1e-9))


def _pyramids(tracks: Tracks, turn: Float64) -> tuple[Float64, Float64]:
    """(V, 3) tips and (V, 4, 3) corners of pyramids that show where each photo looks."""
    tips = tracks.centres() @ turn.T
    depth = _pyramid_depth(tips, tracks.xyz @ turn.T)
    in_camera = np.concatenate([tracks.corners, np.ones((len(tips), 4, 1))], 2) * depth
    # Wide lenses would spread theirs over everything.
    in_camera[:, :, :2] = in_camera[:, :, :2].clip(-1.5 * depth, 1.5 * depth)
    world = np.einsum("vji,vcj->vci", tracks.cam_from_world[:, :, :3], in_camera) @ turn.T
    return tips, tips[:, None] + world


def _pyramid_depth(tips: Float64, xyz: Float64) -> float:
    """Half of what lies between neighbouring cameras, on the median, within what the eye finds and the box holds."""
    low, high = _box(xyz, tips)
    extent = float((high - low).max())
    apart = np.linalg.norm(np.diff(tips, axis=0), axis=1)
    return float(np.clip(0.5 * np.median(apart) if len(apart) else 0.0, 0.012 * extent, 0.05 * extent))
