"""Losses for a batch of matching patches, and the registry of losses for `--loss`.

`anchors` and `positives` are (N, D) float32, and row i of both describes the same point. They have unit length,
unless the objective says `any_length`. A descriptor of another point is a negative. `allowed`, (N, N) bool and
symmetric, is False for two points that must not be negatives of each other. The losses ignore its diagonal.

A pair without any negative does not contribute, and the mean does not count it. A batch of only such pairs gives 0 with
gradients of 0. It raises no error, because several processes may train together and would wait for each other. No
tensor is larger than N x N or than the inputs.

Another package adds a loss by an entry point in the group `hardnet_sfm.losses`. The entry point names an
`hardnet_sfm.training.objectives.Objective`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hardnet_sfm.registry import Registry
from hardnet_sfm.training.loss_terms import (
    NO_SIMILARITY,
    distance_of,
    find_negatives,
    hardest_in_batch,
    mean_over_pairs,
    products,
    root,
)
from hardnet_sfm.training.objectives import DescriptorObjective, Objective


def hardnet(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, margin: float = 1.0) -> Tensor:
    """Triplet margin loss with the closest negative in the batch: mean of max(0, margin + d(a_i, p_i) - d_i).

    d_i is the distance of the pair's closest negative, d(a_i, p_j) or d(a_k, p_i), whichever is smaller (anchor swap).
    Mishchuk et al., Working hard to know your neighbor's margins, NIPS 2017, equations 1 to 3.
    """
    negatives = find_negatives(anchors, allowed)
    positive, negative = hardest_in_batch(anchors, positives, negatives)
    return mean_over_pairs((margin + positive - negative).relu(), negatives)


def dynamic_margin(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Mean of w_i (d(a_i, p_i) - d_i) with the closest negative d_i of `hardnet`. Good descriptors give values below 0.

    The weight w_i is the share of the batch's pairs whose difference is not larger than that of pair i. At any stage of
    training, the hardest pair has weight 1 and a typical pair one half. There is no margin to choose. The weight has no
    gradient.

    Zhang, Rusinkiewicz, Learning local descriptors with a CDF-based dynamic soft margin, ICCV 2019. The paper keeps a
    running histogram of the differences. This implementation uses the distribution within the batch. A batch of 1024
    pairs determines it to 0.016, and a resumed training needs no stored state.
    """
    negatives = find_negatives(anchors, allowed)
    positive, negative = hardest_in_batch(anchors, positives, negatives)
    difference = positive - negative
    used = negatives.any(1)
    ordered = difference.detach().masked_fill(~used, torch.inf).sort().values
    not_larger = torch.searchsorted(ordered, difference.detach(), right=True)
    return mean_over_pairs(difference * not_larger / used.sum().clamp(min=1), negatives)


def hardnet_gor(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, weight: float = 1.0) -> Tensor:
    """Sum of `hardnet` and `weight` times `global_orthogonal`."""
    return hardnet(anchors, positives, allowed) + weight * global_orthogonal(anchors, positives, allowed)


def hardnet_sos(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, weight: float = 1.0) -> Tensor:
    """Sum of `hardnet` and `weight` times `second_order`."""
    return hardnet(anchors, positives, allowed) + weight * second_order(anchors, positives, allowed)


def global_orthogonal(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Regularizes negatives to be as orthogonal as random directions: M1^2 + max(0, M2 - 1 / D).

    M1 and M2 are the means of a b and of (a b)^2 over all negatives in the batch. Zhang, Yu, Kumar, Chang, Learning
    spread-out local feature descriptors, ICCV 2017. The paper draws one negative for each pair.
    """
    negatives = find_negatives(anchors, allowed)
    similarity = products(anchors, positives).masked_fill_(~negatives, 0)
    count = negatives.sum().clamp(min=1)
    first, second = similarity.sum() / count, similarity.square().sum() / count
    return first.square() + (second - 1 / anchors.shape[1]).relu()


def second_order(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, neighbours: int = 8) -> Tensor:
    """Makes distances among anchors equal those among positives: mean of sqrt(sum_j (d(a_i, a_j) - d(p_i, p_j))^2).

    The sum is over each j whose anchor is among the nearest neighbours of anchor i, or whose positive is among the
    nearest neighbours of positive i. Tian et al., SOSNet: second order similarity regularization, CVPR 2019,
    equations 5 and 6.

    Args:
        anchors, positives, allowed: the batch, see the module.
        neighbours: number of nearest neighbours on either side; 8 in the paper.
    """
    negatives = find_negatives(anchors, allowed)
    nearest = torch.cat([_nearest(side, negatives, neighbours) for side in (anchors, positives)], 1).sort(1).values
    # A neighbour on both sides counts once. If fewer negatives are allowed than neighbours wanted, topk also returns
    # rows that are no negatives; these do not count.
    counted = (nearest.diff(dim=1, prepend=torch.full_like(nearest[:, :1], -1)) > 0) & negatives.gather(1, nearest)
    first, second = (distance_of(products(side, side).gather(1, nearest)) for side in (anchors, positives))
    return mean_over_pairs(root(((first - second).square() * counted).sum(1)), negatives)


@torch.no_grad()
def _nearest(descriptors: Tensor, negatives: Tensor, neighbours: int) -> Tensor:
    """(N, neighbours) row numbers of the most similar negatives within one side; all N rows if N is smaller."""
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
