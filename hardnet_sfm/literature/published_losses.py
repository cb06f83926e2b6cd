"""The losses of the literature that HardNet's authors compare theirs with, and those of other networks.

See `hardnet_sfm.training.losses` for what they are given.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Generator, Tensor, nn

from hardnet_sfm.literature.pair_objective import PairObjective, drawn_negatives
from hardnet_sfm.training.loss_terms import (
    distance_of,
    distances_between,
    hardest_in_batch,
    mean_over_pairs,
    negatives_of,
    products,
)
from hardnet_sfm.training.objectives import DescriptorObjective


def contrastive(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, margin: float = 1.0) -> Tensor:
    """Mean of d(a_i, p_i) + max(0, margin - d_i), with `hardnet`'s closest negative d_i.

    The hinge of Simo-Serra et al., Discriminative learning of deep convolutional feature point descriptors, ICCV 2015,
    with the negatives of HardNet, as its authors compare it in their ablation study.
    """
    negatives = negatives_of(anchors, allowed)
    positive, negative = hardest_in_batch(anchors, positives, negatives)
    return mean_over_pairs(positive + (margin - negative).relu(), negatives)


def hardest_softmax(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Mean of log(1 + exp(d(a_i, p_i) - d_i)), with `hardnet`'s closest negative d_i.

    Softmax of 2 - d over the pair and that negative alone, as HardNet's authors compare it in their ablation study;
    `softmax` has all negatives.
    """
    negatives = negatives_of(anchors, allowed)
    positive, negative = hardest_in_batch(anchors, positives, negatives)
    return mean_over_pairs(nn.functional.softplus(positive - negative), negatives)


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
    negatives = negatives_of(anchors, allowed)
    chosen = drawn_negatives(negatives, generator)
    positive, negative = (distance_of((anchors * others).sum(1)) for others in (positives, positives[chosen]))
    return mean_over_pairs((margin + positive - negative).relu(), negatives)


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
    negatives = negatives_of(anchors, allowed)
    others = positives[drawn_negatives(negatives, generator)]
    negative = torch.minimum(distances_between(anchors, others), distances_between(positives, others))
    return mean_over_pairs((margin + distances_between(anchors, positives) - negative).relu(), negatives)


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
    negatives = negatives_of(anchors, allowed)
    negative = (margin - distances_between(anchors, positives[drawn_negatives(negatives, generator)])).relu()
    used = negatives.any(1)
    return _mean_of_largest(distances_between(anchors, positives), used, share) + _mean_of_largest(
        negative, used, share
    )


def softmax(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax of 2 - d over the rows and over the columns of the distance matrix.

    E1 / N of Tian, Fan, Wu, L2-Net, CVPR 2017, the error term for descriptor similarity.
    """
    similarity = -distance_of(products(anchors, positives))  # the 2 cancels
    return _softmax_both_ways(similarity, negatives_of(anchors, allowed))


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


def correlation(descriptors: Tensor) -> Tensor:
    """Half the sum of r_kl^2 over k != l, r_kl the correlation of dimensions k and l over the (N, D) descriptors.

    One side's part of E2 in Tian, Fan, Wu, L2-Net, CVPR 2017, the error term for descriptor compactness.
    """
    centred = nn.functional.normalize(descriptors - descriptors.mean(0), dim=0).T
    squares = products(centred, centred).square()
    return (squares.sum() - squares.trace()) / 2


def feature_softmax(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax over the rows and over the columns of the inner products of intermediate features.

    One layer's part of E3 / N in Tian, Fan, Wu, L2-Net, CVPR 2017, the error term for intermediate feature maps.

    Args:
        anchors, positives: (N, K), a layer's channels and pixels, of any length but normalised: the paper takes them
            behind a batch normalisation.
    """
    return _softmax_both_ways(products(anchors, positives), negatives_of(anchors, allowed))


def _mean_of_largest(terms: Tensor, used: Tensor, share: float) -> Tensor:
    """Of the largest of the (N,) terms that are used: so many that they are at least the given share."""
    count = (used.sum() * share).ceil()
    ordered = terms.masked_fill(~used, -torch.inf).sort(descending=True).values
    kept = torch.arange(len(terms), device=terms.device) < count
    return ordered.masked_fill(~kept, 0).sum() / count.clamp(min=1)


def _mean_of_pairs(sums: Tensor, used: Tensor) -> Tensor:
    """Of the (N,) sums of the terms of a pair of either kind."""
    return sums.masked_fill(~used, 0).sum() / (2 * used.sum()).clamp(min=1)


def _softmax_both_ways(similarity: Tensor, negatives: Tensor) -> Tensor:
    """Mean negative logarithm of the pair's share in its row and in its column of the (N, N) similarities."""
    pair = similarity.diagonal()
    unused = ~negatives.diagonal_scatter(torch.ones_like(pair, dtype=torch.bool))
    compared = similarity.masked_fill(unused, -torch.inf)
    return mean_over_pairs((compared.logsumexp(1) + compared.logsumexp(0)) / 2 - pair, negatives)


CONTRASTIVE = DescriptorObjective(contrastive)
HARDEST_SOFTMAX = DescriptorObjective(hardest_softmax)
RANDOM_TRIPLET = DescriptorObjective(random_triplet)
TRIPLET_SWAP = DescriptorObjective(triplet_swap, any_length=True)
MINED_CONTRASTIVE = DescriptorObjective(mined_contrastive, any_length=True)
SOFTMAX = DescriptorObjective(softmax)
L2NET = DescriptorObjective(l2net, watches_layers=True)
HINGE = PairObjective(hinge)
CROSS_ENTROPY = PairObjective(cross_entropy)
