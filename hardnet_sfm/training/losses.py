"""Losses for a batch of matching patches, and the registry from which `--loss` picks.

`anchors` and `positives` are (N, D) float32, and row i of both describes the same point. They are of unit length,
unless the objective says `any_length`. What describes another point is a negative, unless `allowed`, (N, N) bool and
symmetric, is False for the two; the diagonal of `allowed` is not looked at. A pair without any negative adds nothing,
not even to the number of pairs over which the mean is taken. A batch of such pairs gives 0, with gradients of 0, and no
error: among several processes that train together, one must not leave the others waiting. No tensor is larger than
N x N or than what is given.

Another package adds a loss by an entry point in the group `hardnet_sfm.losses`, whose object is an
`hardnet_sfm.training.objectives.Objective`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hardnet_sfm.registry import Registry
from hardnet_sfm.training.loss_terms import (
    NO_SIMILARITY,
    distance_of,
    hardest_in_batch,
    mean_over_pairs,
    negatives_of,
    products,
    root,
)
from hardnet_sfm.training.objectives import DescriptorObjective, Objective


def hardnet(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, margin: float = 1.0) -> Tensor:
    """Triplet margin with the closest negative in the batch: mean of max(0, margin + d(a_i, p_i) - d_i).

    d_i is the distance of the pair's closest negative, d(a_i, p_j) or d(a_k, p_i), whichever is smaller (anchor swap).
    Mishchuk et al., Working hard to know your neighbor's margins, NIPS 2017, equations 1 to 3.
    """
    negatives = negatives_of(anchors, allowed)
    positive, negative = hardest_in_batch(anchors, positives, negatives)
    return mean_over_pairs((margin + positive - negative).relu(), negatives)


def dynamic_margin(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Mean of w_i (d(a_i, p_i) - d_i), with `hardnet`'s closest negative d_i; below 0 where descriptors are good.

    The weight w_i is the share of the batch's pairs whose difference is not larger, so that the hardest pair weighs 1
    and a typical one half, however far the training has come; there is no margin to choose. It has no gradient.
    Zhang, Rusinkiewicz, Learning local descriptors with a CDF-based dynamic soft margin, ICCV 2019. There the
    distribution is a running histogram; here it is the batch's own, which of 1024 pairs is known to 0.016 and leaves
    nothing to be stored for a resumed training.
    """
    negatives = negatives_of(anchors, allowed)
    positive, negative = hardest_in_batch(anchors, positives, negatives)
    difference = positive - negative
    used = negatives.any(1)
    ordered = difference.detach().masked_fill(~used, torch.inf).sort().values
    not_larger = torch.searchsorted(ordered, difference.detach(), right=True)
    return mean_over_pairs(difference * not_larger / used.sum().clamp(min=1), negatives)


def hardnet_gor(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, weight: float = 1.0) -> Tensor:
    """`hardnet` and, with a weight, `global_orthogonal`."""
    return hardnet(anchors, positives, allowed) + weight * global_orthogonal(anchors, positives, allowed)


def hardnet_sos(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, weight: float = 1.0) -> Tensor:
    """`hardnet` and, with a weight, `second_order`."""
    return hardnet(anchors, positives, allowed) + weight * second_order(anchors, positives, allowed)


def global_orthogonal(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Keeps negatives as orthogonal as random directions are: M1^2 + max(0, M2 - 1 / D).

    M1 and M2 are the means of a b and of (a b)^2 over all negatives in the batch. Zhang, Yu, Kumar, Chang, Learning
    spread-out local feature descriptors, ICCV 2017; there one negative is drawn for each pair.
    """
    negatives = negatives_of(anchors, allowed)
    similarity = products(anchors, positives).masked_fill_(~negatives, 0)
    count = negatives.sum().clamp(min=1)
    first, second = similarity.sum() / count, similarity.square().sum() / count
    return first.square() + (second - 1 / anchors.shape[1]).relu()


def second_order(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, neighbours: int = 8) -> Tensor:
    """Asks of both sides for the same distances within: mean of sqrt(sum over j of (d(a_i, a_j) - d(p_i, p_j))^2).

    The sum is over those j whose anchor is among the nearest neighbours of i's anchor or whose positive is among those
    of i's positive. Tian et al., SOSNet: second order similarity regularization, CVPR 2019, equations 5 and 6.

    Args:
        neighbours: how many on either side; 8 in the paper.
    """
    negatives = negatives_of(anchors, allowed)
    nearest = torch.cat([_nearest(side, negatives, neighbours) for side in (anchors, positives)], 1).sort(1).values
    # What is near on both sides counts once; where less is allowed than asked for, the rest are no neighbours.
    counted = (nearest.diff(dim=1, prepend=torch.full_like(nearest[:, :1], -1)) > 0) & negatives.gather(1, nearest)
    first, second = (distance_of(products(side, side).gather(1, nearest)) for side in (anchors, positives))
    return mean_over_pairs(root(((first - second).square() * counted).sum(1)), negatives)


@torch.no_grad()
def _nearest(descriptors: Tensor, negatives: Tensor, neighbours: int) -> Tensor:
    """(N, neighbours) row numbers of the most similar negatives within one side; all N rows where there are less."""
    similarity = products(descriptors, descriptors).masked_fill_(~negatives, NO_SIMILARITY)
    return similarity.topk(min(neighbours, len(descriptors)), dim=1).indices


LOSSES: Registry[Objective] = Registry(
    "loss",
    "losses",
    {
        "hardnet": DescriptorObjective(hardnet),
        "hardnet+gor": DescriptorObjective(hardnet_gor),
        "hardnet+sos": DescriptorObjective(hardnet_sos),
        "dynamic-margin": DescriptorObjective(dynamic_margin),
    },
)
