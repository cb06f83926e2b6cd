"""Finds the plane transformation that most correspondences agree with. The functions are compiled by numba."""

# numba infers the types when a function is first called.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import numpy as np

from hardnet_sfm.retrieval.kernels import compiled


@compiled
def _agreement(model, mine, theirs, turn, octave, tolerance, inside):
    """Marks correspondences that agree in position, and roughly in scale and orientation; returns their number."""
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
def _distinct(inside, features, entries):
    """Counts the different features of marked correspondences on each side, and returns the smaller number."""
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
def _fit_affine(mine, theirs, inside, model):
    """Fits (2, 3) `model` to marked correspondences by least squares; returns False if it is degenerate or unlikely."""
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
    # The fit must not mirror, scale by more than 10, or squeeze one side to less than a quarter of the other.
    if area <= 0.01 or area >= 100 or a * a + b * b + c * c + d * d > 4.25 * area:
        return False
    model[0, 0], model[0, 1], model[0, 2] = a, b, tx - a * mx - b * my
    model[1, 0], model[1, 1], model[1, 2] = c, d, ty - c * mx - d * my
    return True


@compiled
def _frame(feature, frame):
    """Computes (2, 2) `frame`, the local frame of a feature.

    The feature is x, y, scale, orientation and, if affine, the stretch and its direction.
    """
    cos, sin = feature[2] * np.cos(feature[3]), feature[2] * np.sin(feature[3])
    xx, xy, yy = 1.0, 0.0, 1.0
    if len(feature) > 4:
        long, short = 2 ** (feature[4] / 2), 2 ** (-feature[4] / 2)
        c, s = np.cos(feature[5]), np.sin(feature[5])
        xx, xy, yy = long * c * c + short * s * s, (long - short) * c * s, long * s * s + short * c * c
    frame[0, 0], frame[0, 1] = cos * xx - sin * xy, cos * xy - sin * yy
    frame[1, 0], frame[1, 1] = sin * xx + cos * xy, sin * xy + cos * yy


@compiled
def _hypothesis(mine, theirs, frames, model):
    """Computes (2, 3) `model` from one correspondence alone; returns its turn and octaves.

    It maps one feature's frame to the other's (Philbin et al., CVPR 2007, section 4). It is a similarity if the frames
    are similarity frames.
    """
    _frame(mine, frames[0])
    _frame(theirs, frames[1])
    a, b, c, d = frames[0, 0, 0], frames[0, 0, 1], frames[0, 1, 0], frames[0, 1, 1]
    area = mine[2] * mine[2]
    for row in range(2):
        model[row, 0] = (frames[1, row, 0] * d - frames[1, row, 1] * c) / area
        model[row, 1] = (frames[1, row, 1] * a - frames[1, row, 0] * b) / area
        model[row, 2] = theirs[row] - model[row, 0] * mine[0] - model[row, 1] * mine[1]
    return np.arctan2(model[1, 0] - model[0, 1], model[0, 0] + model[1, 1]), np.log2(theirs[2] / mine[2])


@compiled
def best_transformation(mine, theirs, features, entries, tolerance, step, refined):
    """Finds the transformation that most correspondences agree with.

    Args:
        mine, theirs: (M, 4) float64 each: x, y, scale, orientation of both sides. (M, 6) also has the stretch of affine
            frames, log2 of the ratio of axes, and its direction.
        features, entries: (M,) int64 below M: equal numbers denote the same feature of a side.
        tolerance: pixels in the second photo.
        step: every `step`-th correspondence gives a hypothesis.
        refined: number of best hypotheses to refine.

    Returns:
        (M,) bool, which correspondences agree; and the (2, 3) transformation that fits these best, by least squares.
    """
    number = (len(mine) + step - 1) // step
    counts = np.zeros(number, np.int64)
    models = np.zeros((number, 2, 3))
    turns, octaves, frames = np.zeros(number), np.zeros(number), np.zeros((2, 2, 2))
    inside = np.zeros(len(mine), np.bool_)
    for one in range(number):
        row = one * step
        turns[one], octaves[one] = _hypothesis(mine[row], theirs[row], frames, models[one])
        # Quantised scale and orientation are wrong by a few per cent far from the feature, so the tolerance is doubled.
        counts[one] = _agreement(models[one], mine, theirs, turns[one], octaves[one], 2 * tolerance, inside)
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
    # The kept model was fitted to the correspondences that agreed with the previous fit.
    _fit_affine(mine, theirs, best_inside, best_model)
    return best_inside, best_model
