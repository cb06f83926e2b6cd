"""Spatial verification: which correspondences of a query and a photo fit one transformation of the plane.

As Philbin et al. (CVPR 2007, section 4): each correspondence alone gives a similarity, from the positions, scales and
orientations of its two features; each is scored by the number of correspondences that agree; the best are refined to an
affine transformation by least squares on what agrees, a few times over. There is no chance in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.keypoints import Float32
from hardnet_sfm.retrieval.index import InvertedIndex
from hardnet_sfm.retrieval import kernels
from hardnet_sfm.retrieval.kernels import compiled
from hardnet_sfm.retrieval.scoring import Query

# Largest distance of an inlier from where the transformation puts it, as a share of the photo's diagonal.
_TOLERANCE = 0.012
# Correspondences looked at for a photo, those of the rarest words and nearest signatures; and hypotheses among them.
_MOST = 1000
_HYPOTHESES = 300
_REFINED = 8
LEAST_INLIERS = 5


@dataclass(frozen=True, eq=False)
class Verified:
    """What agrees between the query and one photo.

    Attributes:
        photo: its number.
        inliers: number of query features that agree, each counted once, and so each of the photo's.
        query_features: (K,) int64, rows of the query.
        entries: (K,) int64, of the segment's lists.
        points: (K, 2) float32, positions in the photo, pixels.
        transformation: (2, 3) float64, from pixels of the query to those of the photo.
    """

    photo: int
    inliers: int
    query_features: NDArray[np.int64]
    entries: NDArray[np.int64]
    points: Float32
    transformation: NDArray[np.float64]


def verify(index: InvertedIndex, query: Query, photos: list[int], reach: int) -> dict[int, Verified]:
    """Verifies photos of an index.

    Args:
        index: that they are in.
        query: with its geometry.
        photos: their numbers.
        reach: largest Hamming distance of a correspondence; 64: words alone decide.

    Returns:
        What agrees, by the photo's number; nothing for photos where less than 5 correspondences do.
    """
    verified: dict[int, Verified] = {}
    for number, segment in enumerate(index.segments):
        wanted = index.wanted(number, photos)
        if not wanted.any() or not len(query):
            continue
        lists = (segment.offsets, segment.signatures, segment.images)
        rows = kernels.correspondences(query.starts, query.words, query.signatures, reach, *lists, wanted)
        of_photo, geometry = index.geometry(number, rows[:, 1])
        # Nearest signatures first; a rarer word's distance says as much as a frequent one's.
        order = np.lexsort((rows[:, 1], rows[:, 0], rows[:, 2], of_photo))
        rows, of_photo, geometry = rows[order], of_photo[order], geometry[order]
        bounds = np.append(np.flatnonzero(np.diff(of_photo, prepend=-1)), len(of_photo))
        sizes = segment.sizes
        tasks = [
            (int(of_photo[begin]), query.geometry, rows[begin:end][:_MOST], geometry[begin:end][:_MOST])
            + (_TOLERANCE * float(np.hypot(*sizes[of_photo[begin] - index.starts[number]])),)
            for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
        for found in index.threaded(_verify_photo, tasks):
            if found is not None:
                verified[found.photo] = found
    return verified


def _verify_photo(
    photo: int, of_query: Float32, rows: NDArray[np.int64], geometry: Float32, tolerance: float
) -> Verified | None:
    if len(rows) < LEAST_INLIERS:
        return None
    features, entries = np.unique(rows[:, 0], return_inverse=True)[1], np.unique(rows[:, 1], return_inverse=True)[1]
    mine = of_query[rows[:, 0]].astype(np.float64)
    step = max(1, -(-len(rows) // _HYPOTHESES))
    inside, transformation = best_transformation(
        mine, geometry.astype(np.float64), features, entries, tolerance, step, _REFINED
    )
    # Each feature once on either side, the nearest signatures first.
    kept, seen = [], (set(), set())
    for row in np.flatnonzero(inside).tolist():
        if features[row] not in seen[0] and entries[row] not in seen[1]:
            seen[0].add(features[row])
            seen[1].add(entries[row])
            kept.append(row)
    if len(kept) < LEAST_INLIERS:
        return None
    at = np.array(kept)
    return Verified(photo, len(at), rows[at, 0], rows[at, 1], geometry[at, :2], transformation)


@compiled
def _agreement(model: Any, mine: Any, theirs: Any, turn: Any, octave: Any, tolerance: Any, inside: Any) -> Any:
    """Marks correspondences whose position, and roughly scale and orientation, agree; returns how many."""
    count = 0
    limit = tolerance * tolerance
    for row in range(len(mine)):
        x = model[0, 0] * mine[row, 0] + model[0, 1] * mine[row, 1] + model[0, 2] - theirs[row, 0]
        y = model[1, 0] * mine[row, 0] + model[1, 1] * mine[row, 1] + model[1, 2] - theirs[row, 1]
        good = x * x + y * y <= limit
        if good:
            change = np.abs(np.log2(theirs[row, 2] / mine[row, 2]) - octave)
            angle = np.abs((theirs[row, 3] - mine[row, 3] - turn + np.pi) % (2 * np.pi) - np.pi)
            good = change <= 1.0 and angle <= 0.7
        inside[row] = good
        count += good
    return count


@compiled
def _distinct(inside: Any, features: Any, entries: Any) -> Any:
    """The smaller number of different features that marked correspondences have on either side."""
    seen = np.zeros((2, len(inside)), np.bool_)
    first, second = 0, 0
    for row in range(len(inside)):
        if inside[row]:
            if not seen[0, features[row]]:
                seen[0, features[row]] = True
                first += 1
            if not seen[1, entries[row]]:
                seen[1, entries[row]] = True
                second += 1
    return min(first, second)


@compiled
def _fit_affine(mine: Any, theirs: Any, inside: Any, model: Any) -> Any:
    """Least squares over marked correspondences, into (2, 3) `model`; False where it is degenerate or unlikely."""
    count, mx, my, tx, ty = 0, 0.0, 0.0, 0.0, 0.0
    for row in range(len(mine)):
        if inside[row]:
            count += 1
            mx += mine[row, 0]
            my += mine[row, 1]
            tx += theirs[row, 0]
            ty += theirs[row, 1]
    if count < 4:
        return False
    mx, my, tx, ty = mx / count, my / count, tx / count, ty / count
    sxx, sxy, syy, ax, ay, bx, by = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for row in range(len(mine)):
        if inside[row]:
            x, y = mine[row, 0] - mx, mine[row, 1] - my
            u, v = theirs[row, 0] - tx, theirs[row, 1] - ty
            sxx += x * x
            sxy += x * y
            syy += y * y
            ax += u * x
            ay += u * y
            bx += v * x
            by += v * y
    determinant = sxx * syy - sxy * sxy
    if determinant <= 1e-4 * (sxx + syy) ** 2:
        return False
    a, b = (ax * syy - ay * sxy) / determinant, (ay * sxx - ax * sxy) / determinant
    c, d = (bx * syy - by * sxy) / determinant, (by * sxx - bx * sxy) / determinant
    area = a * d - b * c
    # No mirror, no scale beyond 10, no side squeezed beyond a quarter of the other.
    if area <= 0.01 or area >= 100 or a * a + b * b + c * c + d * d > 4.25 * area:
        return False
    model[0, 0], model[0, 1], model[0, 2] = a, b, tx - a * mx - b * my
    model[1, 0], model[1, 1], model[1, 2] = c, d, ty - c * mx - d * my
    return True


@compiled
def best_transformation(
    mine: Any, theirs: Any, features: Any, entries: Any, tolerance: Any, step: Any, refined: Any
) -> Any:
    """The transformation that most correspondences agree with.

    Args:
        mine, theirs: (M, 4) float64 each: x, y, scale, orientation of both sides.
        features, entries: (M,) int64 below M: equal numbers are the same feature of a side.
        tolerance: pixels in the second photo.
        step: every so many correspondences is a hypothesis.
        refined: how many of the best hypotheses are refined.

    Returns:
        (M,) bool, which agree; and the (2, 3) transformation.
    """
    number = (len(mine) + step - 1) // step
    counts = np.zeros(number, np.int64)
    models = np.zeros((number, 2, 3))
    turns, octaves = np.zeros(number), np.zeros(number)
    inside = np.zeros(len(mine), np.bool_)
    for one in range(number):
        row = one * step
        ratio, turn = theirs[row, 2] / mine[row, 2], theirs[row, 3] - mine[row, 3]
        cos, sin = ratio * np.cos(turn), ratio * np.sin(turn)
        model = models[one]
        model[0, 0], model[0, 1], model[1, 0], model[1, 1] = cos, -sin, sin, cos
        model[0, 2] = theirs[row, 0] - cos * mine[row, 0] + sin * mine[row, 1]
        model[1, 2] = theirs[row, 1] - sin * mine[row, 0] - cos * mine[row, 1]
        turns[one], octaves[one] = turn, np.log2(ratio)
        # Quantised scale and orientation are wrong by a few per cent far from the feature: twice the tolerance.
        counts[one] = _agreement(model, mine, theirs, turn, octaves[one], 2 * tolerance, inside)
    order = np.argsort(-counts, kind="mergesort")
    best, best_inside, best_model = 0, np.zeros(len(mine), np.bool_), models[order[0]].copy()
    for one in order[:refined]:
        if counts[one] < 4 or counts[one] <= best:
            break
        model, wide = models[one].copy(), np.zeros(len(mine), np.bool_)
        _agreement(model, mine, theirs, turns[one], octaves[one], 2 * tolerance, wide)
        for _ in range(4):
            if not _fit_affine(mine, theirs, wide, model):
                break
            _agreement(model, mine, theirs, turns[one], octaves[one], tolerance, inside)
            count = _distinct(inside, features, entries)
            if count > best:
                best, best_inside, best_model = count, inside.copy(), model.copy()
            wide[:] = inside
    return best_inside, best_model
