"""Published losses: those that HardNet's authors compare with theirs, and those of other networks.

See `hardnet_sfm.training.losses` for the arguments.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Generator, Tensor, nn

from hardnet_sfm.literature.pair_objective import PairObjective, draw_negatives
from hardnet_sfm.training.loss_terms import (
    distance_of,
    distances_between,
    find_negatives,
    hardest_in_batch,
    mean_over_pairs,
    products,
)
from hardnet_sfm.training.objectives import DescriptorObjective


def contrastive(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None, margin: float = 1.0) -> Tensor:
    """Mean of d(a_i, p_i) + max(0, margin - d_i), with `hardnet`'s closest negative d_i.

    This is the hinge loss of Simo-Serra et al., Discriminative learning of deep convolutional feature point
    descriptors, ICCV 2015, with HardNet's negatives. HardNet's authors compare it in their ablation study.
    """
    negatives = find_negatives(anchors, allowed)
    positive, negative = hardest_in_batch(anchors, positives, negatives)
    return mean_over_pairs(positive + (margin - negative).relu(), negatives)


def hardest_softmax(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Mean of log(1 + exp(d(a_i, p_i) - d_i)), with `hardnet`'s closest negative d_i.

    This is the softmax of 2 - d over the pair and that negative alone. HardNet's authors compare it in their ablation
    study. `softmax` uses all negatives.
    """
    negatives = find_negatives(anchors, allowed)
    positive, negative = hardest_in_batch(anchors, positives, negatives)
    return mean_over_pairs(nn.functional.softplus(positive - negative), negatives)


def random_triplet(
    anchors: Tensor,
    positives: Tensor,
    allowed: Tensor | None = None,
    margin: float = 1.0,
    generator: Generator | None = None,
) -> Tensor:
    """Triplet margin loss without mining: mean of max(0, margin + d(a_i, p_i) - d(a_i, p_j)).

    j is drawn from the negatives of i.

    Args:
        anchors, positives, allowed: the batch.
        margin: the margin.
        generator: random generator of the CPU on any device, so that all devices draw the same numbers. The default is
            torch's own.
    """
    negatives = find_negatives(anchors, allowed)
    chosen = draw_negatives(negatives, generator)
    positive, negative = (distance_of((anchors * others).sum(1)) for others in (positives, positives[chosen]))
    return mean_over_pairs((margin + positive - negative).relu(), negatives)


def triplet_swap(
    anchors: Tensor,
    positives: Tensor,
    allowed: Tensor | None = None,
    margin: float = 1.0,
    generator: Generator | None = None,
) -> Tensor:
    """Triplet margin loss with anchor swap: mean of max(0, margin + d(a_i, p_i) - min(d(a_i, p_j), d(p_i, p_j))).

    j is drawn from the negatives of i. The patch of the pair that is closer to the negative serves as the anchor.
    Descriptors may have any length. Balntas et al., Learning local feature descriptors with triplets and shallow
    convolutional neural networks, BMVC 2016, equations 2 and 3.

    Args:
        anchors, positives, allowed: the batch.
        margin: the margin.
        generator: as for `random_triplet`.
    """
    negatives = find_negatives(anchors, allowed)
    others = positives[draw_negatives(negatives, generator)]
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
    """Mean of the largest d(a_i, p_i), plus the mean of the largest max(0, margin - d(a_i, p_j)).

    j is drawn from the negatives of i. Each mean is over the hardest share of the batch. Descriptors may have any
    length. Simo-Serra et al., Discriminative learning of deep convolutional feature point descriptors, ICCV 2015,
    equation 1 and section 3.3. The paper evaluates 1024 pairs of either kind and learns from 128 of them.

    Args:
        anchors, positives, allowed: the batch.
        margin: the margin.
        share: share of the batch that is kept.
        generator: as for `random_triplet`.
    """
    negatives = find_negatives(anchors, allowed)
    negative = (margin - distances_between(anchors, positives[draw_negatives(negatives, generator)])).relu()
    used = negatives.any(1)
    return _mean_of_largest(distances_between(anchors, positives), used, share) + _mean_of_largest(
        negative, used, share
    )


def softmax(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax loss of 2 - d over the rows and over the columns of the distance matrix.

    This is E1 / N of Tian, Fan, Wu, L2-Net, CVPR 2017, the error term for descriptor similarity.
    """
    similarity = -distance_of(products(anchors, positives))  # the 2 cancels
    return _softmax_both_ways(similarity, find_negatives(anchors, allowed))


def l2net(
    anchors: Tensor,
    positives: Tensor,
    allowed: Tensor | None = None,
    features: Iterable[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """L2-Net's loss per pair, (E1 + E2 + E3) / N: `softmax`, `correlation` of both sides, and `feature_softmax`.

    E2 does not use negatives, so every descriptor counts in it. Tian, Fan, Wu, L2-Net, CVPR 2017; the terms have equal
    weights as in the paper.

    Args:
        anchors, positives, allowed: the batch.
        features: the arguments of `feature_softmax` for each supervised layer. Without them, E3 is left out. The paper
            supervises the first and the last batch normalisation, which
            `hardnet_sfm.networks.architectures.Architecture.supervised` names.
    """
    compactness = (correlation(anchors) + correlation(positives)) / len(anchors)
    intermediate = sum((feature_softmax(*layer, allowed) for layer in features), anchors.new_zeros(()))
    return softmax(anchors, positives, allowed) + compactness + intermediate


def hinge(positive: Tensor, negative: Tensor, used: Tensor) -> Tensor:
    """Mean of max(0, 1 - y s) over pairs of both kinds. y is 1 for the same point, else -1; s is the score.

    Zagoruyko, Komodakis, Learning to compare image patches via convolutional neural networks, CVPR 2015, equation 1.
    """
    return _mean_of_pairs((1 - positive).relu() + (1 + negative).relu(), used)


def cross_entropy(positive: Tensor, negative: Tensor, used: Tensor) -> Tensor:
    """Mean of -log p over pairs of both kinds. p is the probability of the right answer; the score is the log-odds.

    Han et al., MatchNet, CVPR 2015, equation 1.
    """
    return _mean_of_pairs(nn.functional.softplus(-positive) + nn.functional.softplus(negative), used)


def correlation(descriptors: Tensor) -> Tensor:
    """Half the sum of r_kl^2 over k != l. r_kl is the correlation of dimensions k and l over the (N, D) descriptors.

    This is one side's part of E2 in Tian, Fan, Wu, L2-Net, CVPR 2017, the error term for descriptor compactness.
    """
    centred = nn.functional.normalize(descriptors - descriptors.mean(0), dim=0).T
    squares = products(centred, centred).square()
    return (squares.sum() - squares.trace()) / 2


def feature_softmax(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax loss over the rows and over the columns of the inner products of intermediate features.

    This is one layer's part of E3 / N in Tian, Fan, Wu, L2-Net, CVPR 2017, the error term for intermediate feature
    maps.

    Args:
        anchors, positives: (N, K) features: all channels and pixels of a layer. The rows may have any length. The paper
            takes the outputs of a batch normalisation.
        allowed: as in the other losses.
    """
    return _softmax_both_ways(products(anchors, positives), find_negatives(anchors, allowed))


def _mean_of_largest(terms: Tensor, used: Tensor, share: float) -> Tensor:
    """Mean of the largest of the (N,) used terms. Their number is the given share of the used terms, rounded up."""
    count = (used.sum() * share).ceil()
    ordered = terms.masked_fill(~used, -torch.inf).sort(descending=True).values
    kept = torch.arange(len(terms), device=terms.device) < count
    return ordered.masked_fill(~kept, 0).sum() / count.clamp(min=1)


def _mean_of_pairs(sums: Tensor, used: Tensor) -> Tensor:
    """Mean over pairs of both kinds. `sums` are the (N,) sums of the terms of a matching and another pair."""
    return sums.masked_fill(~used, 0).sum() / (2 * used.sum()).clamp(min=1)


def _softmax_both_ways(similarity: Tensor, negatives: Tensor) -> Tensor:
    """Mean negative logarithm of the softmax of each pair in its row and in its column of the (N, N) similarities."""
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
