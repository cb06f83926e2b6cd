"""Losses for a batch of matching patches: the registries from which `--loss` picks, and the terms they are made of.

`LOSSES` are of descriptors, `PAIR_LOSSES` of the scores that a network gives to pairs of patches.

In `LOSSES` `anchors` and `positives` are (N, D) float32, and row i of both describes the same point. They are of unit
length, but for the losses in `ANY_LENGTH`, whose margins are of descriptors as the network gives them.
What describes another point is a negative, unless `allowed`, (N, N) bool and symmetric, is False for the two; the
diagonal of `allowed` is not looked at. A pair without any negative adds nothing, not even to the number of pairs over
which the mean is taken. A batch of such pairs gives 0, with gradients of 0, and no error: among several processes that
train together, one must not leave the others waiting.

Similarities are always multiplied in float32, also under autocast: 2 - 2 a b in bfloat16 would not tell distances below
0.06 from 0. No tensor is larger than N x N or than what is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

# Squares below, as of distances between descriptors that float32 does not tell apart (2 - 2 a b is off by some 1e-7),
# count as this much and have no gradient, which would be infinite at 0.
_LEAST_SQUARE = 1e-6
# Less than any similarity of vectors of unit length.
_NO_SIMILARITY = -2.0


class Loss(Protocol):
    """What `LOSSES` holds: a scalar that falls as matching descriptors get closer than others."""

    def __call__(self, anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor: ...


class PairLoss(Protocol):
    """What `PAIR_LOSSES` holds: a scalar that falls as matching pairs score higher than others.

    Of (N,) float32 scores of pairs of the same point and of as many pairs of other points, where `used`, (N,) bool, is
    True; what it is elsewhere does not matter.
    """

    def __call__(self, positive: Tensor, negative: Tensor, used: Tensor) -> Tensor: ...


def hardnet(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, margin: float = 1.0) -> Tensor:
    """Triplet margin with the closest negative in the batch: mean of max(0, margin + d(a_i, p_i) - d_i).

    d_i is the distance of the pair's closest negative, d(a_i, p_j) or d(a_k, p_i), whichever is smaller (anchor swap).
    Mishchuk et al., Working hard to know your neighbor's margins, NIPS 2017, equations 1 to 3.
    """
    negatives = _negatives(anchors, allowed)
    positive, negative = _hardest_in_batch(anchors, positives, negatives)
    return _mean((margin + positive - negative).relu(), negatives)


def contrastive(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, margin: float = 1.0) -> Tensor:
    """Mean of d(a_i, p_i) + max(0, margin - d_i), with `hardnet`'s closest negative d_i.

    The hinge of Simo-Serra et al., Discriminative learning of deep convolutional feature point descriptors, ICCV 2015,
    with the negatives of HardNet, as its authors compare it in their ablation study.
    """
    negatives = _negatives(anchors, allowed)
    positive, negative = _hardest_in_batch(anchors, positives, negatives)
    return _mean(positive + (margin - negative).relu(), negatives)


def hardest_softmax(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Mean of log(1 + exp(d(a_i, p_i) - d_i)), with `hardnet`'s closest negative d_i.

    Softmax of 2 - d over the pair and that negative alone, as HardNet's authors compare it in their ablation study;
    `softmax` has all negatives.
    """
    negatives = _negatives(anchors, allowed)
    positive, negative = _hardest_in_batch(anchors, positives, negatives)
    return _mean(nn.functional.softplus(positive - negative), negatives)


def dynamic_margin(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Mean of w_i (d(a_i, p_i) - d_i), with `hardnet`'s closest negative d_i; below 0 where descriptors are good.

    The weight w_i is the share of the batch's pairs whose difference is not larger, so that the hardest pair weighs 1
    and a typical one half, however far the training has come; there is no margin to choose. It has no gradient.
    Zhang, Rusinkiewicz, Learning local descriptors with a CDF-based dynamic soft margin, ICCV 2019. There the
    distribution is a running histogram; here it is the batch's own, which of 1024 pairs is known to 0.016 and leaves
    nothing to be stored for a resumed training.
    """
    negatives = _negatives(anchors, allowed)
    positive, negative = _hardest_in_batch(anchors, positives, negatives)
    difference = positive - negative
    used = negatives.any(1)
    ordered = difference.detach().masked_fill(~used, torch.inf).sort().values
    not_larger = torch.searchsorted(ordered, difference.detach(), right=True)
    return _mean(difference * not_larger / used.sum().clamp(min=1), negatives)


def random_triplet(
    anchors: Tensor,
    positives: Tensor,
    allowed: Tensor | None = None,
    margin: float = 1.0,
    generator: Generator | None = None,
) -> Tensor:
    """Triplet margin without mining: mean of max(0, margin + d(a_i, p_i) - d(a_i, p_j)), j drawn from i's negatives.

    Args:
        generator: of the CPU, wherever the descriptors are, so that all devices draw the same; by default torch's own.
    """
    negatives = _negatives(anchors, allowed)
    chosen = drawn_negatives(negatives, generator)
    positive, negative = (_distance((anchors * others).sum(1)) for others in (positives, positives[chosen]))
    return _mean((margin + positive - negative).relu(), negatives)


def triplet_swap(
    anchors: Tensor,
    positives: Tensor,
    allowed: Tensor | None = None,
    margin: float = 1.0,
    generator: Generator | None = None,
) -> Tensor:
    """Triplet margin with anchor swap: mean of max(0, margin + d(a_i, p_i) - min(d(a_i, p_j), d(p_i, p_j))).

    j is drawn from i's negatives; whichever of the pair is closer to it is taken for the anchor. Descriptors may have
    any length. Balntas et al., Learning local feature descriptors with triplets and shallow convolutional neural
    networks, BMVC 2016, equations 2 and 3.

    Args:
        generator: as for `random_triplet`.
    """
    negatives = _negatives(anchors, allowed)
    others = positives[drawn_negatives(negatives, generator)]
    negative = torch.minimum(_apart(anchors, others), _apart(positives, others))
    return _mean((margin + _apart(anchors, positives) - negative).relu(), negatives)


def mined_contrastive(
    anchors: Tensor,
    positives: Tensor,
    allowed: Tensor | None = None,
    margin: float = 4.0,
    share: float = 1 / 8,
    generator: Generator | None = None,
) -> Tensor:
    """Mean of the largest d(a_i, p_i), and that of the largest max(0, margin - d(a_i, p_j)).

    j is drawn from i's negatives. Of both, the share of the batch that is hardest is kept. Descriptors may have any
    length. Simo-Serra et al., Discriminative learning of deep convolutional feature point descriptors, ICCV 2015,
    equation 1 and section 3.3, where 128 pairs of either kind are learned from of 1024 that are looked at.

    Args:
        generator: as for `random_triplet`.
    """
    negatives = _negatives(anchors, allowed)
    negative = (margin - _apart(anchors, positives[drawn_negatives(negatives, generator)])).relu()
    used = negatives.any(1)
    return _mean_of_largest(_apart(anchors, positives), used, share) + _mean_of_largest(negative, used, share)


def softmax(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax of 2 - d over the rows and over the columns of the distance matrix.

    E1 / N of Tian, Fan, Wu, L2-Net, CVPR 2017, the error term for descriptor similarity.
    """
    similarity = -_distance(_products(anchors, positives))  # the 2 cancels
    return _softmax_both_ways(similarity, _negatives(anchors, allowed))


def l2net(
    anchors: Tensor,
    positives: Tensor,
    allowed: Tensor | None = None,
    features: Iterable[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """L2-Net's loss per pair, (E1 + E2 + E3) / N: `softmax`, `correlation` of both sides, `feature_softmax`.

    E2 knows no negatives: every descriptor counts in it. Tian, Fan, Wu, L2-Net, CVPR 2017, where no term is weighted.

    Args:
        features: the arguments of `feature_softmax` for each layer that is supervised; without, E3 is left out. The
            network has to hand them out; the paper's are the first and the last batch normalisation's, which
            `hardnet_sfm.networks.architectures.Architecture.supervised` names.
    """
    compactness = (correlation(anchors) + correlation(positives)) / len(anchors)
    intermediate = sum((feature_softmax(*layer, allowed) for layer in features), anchors.new_zeros(()))
    return softmax(anchors, positives, allowed) + compactness + intermediate


def hardnet_gor(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, weight: float = 1.0) -> Tensor:
    """`hardnet` and, with a weight, `global_orthogonal`."""
    return hardnet(anchors, positives, allowed) + weight * global_orthogonal(anchors, positives, allowed)


def hardnet_sos(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, weight: float = 1.0) -> Tensor:
    """`hardnet` and, with a weight, `second_order`."""
    return hardnet(anchors, positives, allowed) + weight * second_order(anchors, positives, allowed)


LOSSES: dict[str, Loss] = {
    "hardnet": hardnet,
    "hardnet+gor": hardnet_gor,
    "hardnet+sos": hardnet_sos,
    "dynamic-margin": dynamic_margin,
    "contrastive": contrastive,
    "softmax": softmax,
    "hardest-softmax": hardest_softmax,
    "l2net": l2net,
    "random-triplet": random_triplet,
    "triplet-swap": triplet_swap,
    "mined-contrastive": mined_contrastive,
}
ANY_LENGTH = frozenset({"triplet-swap", "mined-contrastive"})


def hinge(positive: Tensor, negative: Tensor, used: Tensor) -> Tensor:
    """Mean of max(0, 1 - y s) over pairs of both kinds, y = 1 for the same point and -1 for others, s the score.

    Zagoruyko, Komodakis, Learning to compare image patches via convolutional neural networks, CVPR 2015, equation 1.
    """
    return _mean_of_pairs((1 - positive).relu() + (1 + negative).relu(), used)


def cross_entropy(positive: Tensor, negative: Tensor, used: Tensor) -> Tensor:
    """Mean of -log p over pairs of both kinds, p the probability of what is right, the score the logarithm of its odds.

    Han et al., MatchNet, CVPR 2015, equation 1.
    """
    return _mean_of_pairs(nn.functional.softplus(-positive) + nn.functional.softplus(negative), used)


PAIR_LOSSES: dict[str, PairLoss] = {"hinge": hinge, "cross-entropy": cross_entropy}


def drawn_negatives(negatives: Tensor, generator: Generator | None = None) -> Tensor:
    """(N,) numbers drawn evenly from where each row of (N, N) bool is True; any number for rows without.

    Args:
        generator: of the CPU, wherever `negatives` are, so that all devices draw the same; by default torch's own.
    """
    count, so_far = len(negatives), negatives.cumsum(1, dtype=torch.int32)
    drawn = torch.rand(count, generator=generator).to(negatives.device) * so_far[:, -1]
    return torch.searchsorted(so_far, drawn.int()[:, None], right=True).squeeze(1).clamp(max=count - 1)


def correlation(descriptors: Tensor) -> Tensor:
    """Half the sum of r_kl^2 over k != l, r_kl the correlation of dimensions k and l over the (N, D) descriptors.

    One side's part of E2 in Tian, Fan, Wu, L2-Net, CVPR 2017, the error term for descriptor compactness.
    """
    centred = nn.functional.normalize(descriptors - descriptors.mean(0), dim=0).T
    squares = _products(centred, centred).square()
    return (squares.sum() - squares.trace()) / 2


def feature_softmax(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax over the rows and over the columns of the inner products of intermediate features.

    One layer's part of E3 / N in Tian, Fan, Wu, L2-Net, CVPR 2017, the error term for intermediate feature maps.

    Args:
        anchors, positives: (N, K), a layer's channels and pixels, of any length but normalised: the paper takes them
            behind a batch normalisation.
    """
    return _softmax_both_ways(_products(anchors, positives), _negatives(anchors, allowed))


def global_orthogonal(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Keeps negatives as orthogonal as random directions are: M1^2 + max(0, M2 - 1 / D).

    M1 and M2 are the means of a b and of (a b)^2 over all negatives in the batch. Zhang, Yu, Kumar, Chang, Learning
    spread-out local feature descriptors, ICCV 2017; there one negative is drawn for each pair.
    """
    negatives = _negatives(anchors, allowed)
    similarity = _products(anchors, positives).masked_fill_(~negatives, 0)
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
    negatives = _negatives(anchors, allowed)
    nearest = torch.cat([_nearest(side, negatives, neighbours) for side in (anchors, positives)], 1).sort(1).values
    # What is near on both sides counts once; where less is allowed than asked for, the rest are no neighbours.
    counted = (nearest.diff(dim=1, prepend=torch.full_like(nearest[:, :1], -1)) > 0) & negatives.gather(1, nearest)
    first, second = (_distance(_products(side, side).gather(1, nearest)) for side in (anchors, positives))
    return _mean(_root(((first - second).square() * counted).sum(1)), negatives)


def _negatives(anchors: Tensor, allowed: Tensor | None) -> Tensor:
    """(N, N) bool: whose negative is whose."""
    others = ~torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    return others if allowed is None else others & allowed


def _mean(terms: Tensor, negatives: Tensor) -> Tensor:
    """Of the (N,) terms of pairs that have a negative."""
    used = negatives.any(1)
    return (terms * used).sum() / used.sum().clamp(min=1)


def _mean_of_largest(terms: Tensor, used: Tensor, share: float) -> Tensor:
    """Of the largest of the (N,) terms that are used: so many that they are at least the given share."""
    count = (used.sum() * share).ceil()
    ordered = terms.masked_fill(~used, -torch.inf).sort(descending=True).values
    kept = torch.arange(len(terms), device=terms.device) < count
    return ordered.masked_fill(~kept, 0).sum() / count.clamp(min=1)


def _mean_of_pairs(sums: Tensor, used: Tensor) -> Tensor:
    """Of the (N,) sums of the terms of a pair of either kind."""
    return sums.masked_fill(~used, 0).sum() / (2 * used.sum()).clamp(min=1)


def _products(first: Tensor, second: Tensor) -> Tensor:
    """(N, K) and (M, K) to the (N, M) inner products of their rows."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.T


def _root(squares: Tensor) -> Tensor:
    return squares.clamp(min=_LEAST_SQUARE).sqrt()


def _distance(similarity: Tensor) -> Tensor:
    """L2 distance of vectors of unit length whose inner product is given."""
    return _root(2 - 2 * similarity)


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """(N,) L2 distances of the rows of two (N, D), of any length."""
    return _root((first - second).square().sum(1))


def _hardest_in_batch(anchors: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) distances of the pairs and of the closest negative of each, 2 or more where there is none."""
    similarity = _products(anchors, positives).masked_fill_(~negatives, _NO_SIMILARITY)
    closest = torch.maximum(similarity.amax(1), similarity.amax(0))
    return _distance((anchors * positives).sum(1)), _distance(closest)


def _softmax_both_ways(similarity: Tensor, negatives: Tensor) -> Tensor:
    """Mean negative logarithm of the pair's share in its row and in its column of the (N, N) similarities."""
    pair = similarity.diagonal()
    unused = ~negatives.diagonal_scatter(torch.ones_like(pair, dtype=torch.bool))
    compared = similarity.masked_fill(unused, -torch.inf)
    return _mean((compared.logsumexp(1) + compared.logsumexp(0)) / 2 - pair, negatives)


@torch.no_grad()
def _nearest(descriptors: Tensor, negatives: Tensor, neighbours: int) -> Tensor:
    """(N, neighbours) row numbers of the most similar negatives within one side; all N rows where there are less."""
    similarity = _products(descriptors, descriptors).masked_fill_(~negatives, _NO_SIMILARITY)
    return similarity.topk(min(neighbours, len(descriptors)), dim=1).indices
