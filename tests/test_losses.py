"""The losses against loops in double precision, their gradients, and what no loss may do."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hardnet_sfm.literature.pair_objective import PairObjective
from hardnet_sfm.literature.published_losses import (
    correlation,
    feature_softmax,
    l2net,
    mined_contrastive,
    random_triplet,
    softmax,
    triplet_swap,
)
from hardnet_sfm.training import losses
from hardnet_sfm.training.losses import global_orthogonal, hardnet, second_order
from hardnet_sfm.training.objectives import DescriptorLoss, DescriptorObjective

pytestmark = pytest.mark.usefixtures("one_thread")

Rows = list[list[float]]
Negatives = list[list[int]]
Reference = Callable[[Rows, Rows, Negatives], float]
SEED = 11
OBJECTIVES = {name: of for name, of in losses.LOSSES.items() if isinstance(of, DescriptorObjective)}
LOSSES = {name: of.function for name, of in OBJECTIVES.items()}
PAIR_LOSSES = {name: of.function for name, of in losses.LOSSES.items() if isinstance(of, PairObjective)}
ANY_LENGTH = [name for name, of in OBJECTIVES.items() if of.any_length]


def pairs(count: int, dimension: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Descriptors of unit length, each closer to its own positive than to most others."""
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    positives = anchors + 0.8 * torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    return normalize(anchors, dim=1).to(dtype), normalize(positives, dim=1).to(dtype)


def mask(count: int) -> Tensor:
    """Some pairs may not be negatives of each other, the third one's points of nobody. The diagonal means nothing."""
    allowed = torch.ones(count, count, dtype=torch.bool)
    for i, j in [(0, 1), (4, 5), (0, 6)]:
        allowed[i, j] = allowed[j, i] = False
    allowed[2] = allowed[:, 2] = False
    return allowed


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def mean(terms: list[float]) -> float:
    return sum(terms) / len(terms)


def with_negatives(negatives: Negatives) -> list[int]:
    return [i for i, others in enumerate(negatives) if others]


def closest(anchors: Rows, positives: Rows, others: list[int], i: int) -> float:
    return min(min(math.dist(anchors[i], positives[j]), math.dist(anchors[j], positives[i])) for j in others)


def hardnet_loop(anchors: Rows, positives: Rows, negatives: Negatives) -> float:
    return mean(
        [
            max(0, 1 + math.dist(anchors[i], positives[i]) - closest(anchors, positives, negatives[i], i))
            for i in with_negatives(negatives)
        ]
    )


def contrastive_loop(anchors: Rows, positives: Rows, negatives: Negatives) -> float:
    return mean(
        [
            math.dist(anchors[i], positives[i]) + max(0, 1 - closest(anchors, positives, negatives[i], i))
            for i in with_negatives(negatives)
        ]
    )


def hardest_softmax_loop(anchors: Rows, positives: Rows, negatives: Negatives) -> float:
    terms = []
    for i in with_negatives(negatives):
        pair, other = (
            math.exp(2 - distance)
            for distance in (math.dist(anchors[i], positives[i]), closest(anchors, positives, negatives[i], i))
        )
        terms.append(-math.log(pair / (pair + other)))
    return mean(terms)


def dynamic_margin_loop(anchors: Rows, positives: Rows, negatives: Negatives) -> float:
    differences = [
        math.dist(anchors[i], positives[i]) - closest(anchors, positives, negatives[i], i)
        for i in with_negatives(negatives)
    ]
    return mean([d * mean([float(other <= d) for other in differences]) for d in differences])


def random_triplet_loop(anchors: Rows, positives: Rows, negatives: Negatives) -> float:
    drawn = torch.rand(len(anchors), generator=torch.Generator().manual_seed(SEED)).tolist()
    terms = []
    for i in with_negatives(negatives):
        j = negatives[i][int(drawn[i] * len(negatives[i]))]
        terms.append(max(0, 1 + math.dist(anchors[i], positives[i]) - math.dist(anchors[i], positives[j])))
    return mean(terms)


def drawn_by_loop(negatives: Negatives) -> list[int]:
    """The negative that each pair with any draws."""
    drawn = torch.rand(len(negatives), generator=torch.Generator().manual_seed(SEED)).tolist()
    return [
        others[int(number * len(others))] if others else -1 for number, others in zip(drawn, negatives, strict=True)
    ]


def triplet_swap_loop(anchors: Rows, positives: Rows, negatives: Negatives) -> float:
    drawn, terms = drawn_by_loop(negatives), []
    for i in with_negatives(negatives):
        other = positives[drawn[i]]
        nearer = min(math.dist(anchors[i], other), math.dist(positives[i], other))
        terms.append(max(0, 1 + math.dist(anchors[i], positives[i]) - nearer))
    return mean(terms)


def mined_contrastive_loop(
    anchors: Rows, positives: Rows, negatives: Negatives, margin: float = 4, share: float = 1 / 8
) -> float:
    drawn, used = drawn_by_loop(negatives), with_negatives(negatives)
    kept = math.ceil(share * len(used))
    near = [math.dist(anchors[i], positives[i]) for i in used]
    far = [max(0, margin - math.dist(anchors[i], positives[drawn[i]])) for i in used]
    return sum(mean(sorted(terms, reverse=True)[:kept]) for terms in (near, far))


def both_ways_loop(similarity: Callable[[int, int], float], negatives: Negatives) -> float:
    terms = []
    for i in with_negatives(negatives):
        own = math.exp(similarity(i, i))
        row = own / sum(math.exp(similarity(i, j)) for j in [i, *negatives[i]])
        column = own / sum(math.exp(similarity(j, i)) for j in [i, *negatives[i]])
        terms.append(-(math.log(row) + math.log(column)) / 2)
    return mean(terms)


def softmax_loop(anchors: Rows, positives: Rows, negatives: Negatives) -> float:
    return both_ways_loop(lambda i, j: 2 - math.dist(anchors[i], positives[j]), negatives)


def correlation_loop(rows: Rows) -> float:
    columns = list(zip(*rows, strict=True))
    centred = [[value - mean(list(column)) for value in column] for column in columns]
    total = 0.0
    for k, one in enumerate(centred):
        for m, other in enumerate(centred):
            if k != m:
                total += dot(one, other) ** 2 / (dot(one, one) * dot(other, other))
    return total / 2


def l2net_loop(anchors: Rows, positives: Rows, negatives: Negatives) -> float:
    compactness = correlation_loop(anchors) + correlation_loop(positives)
    return softmax_loop(anchors, positives, negatives) + compactness / len(anchors)


def global_orthogonal_loop(anchors: Rows, positives: Rows, negatives: Negatives) -> float:
    products = [dot(anchors[i], positives[j]) for i, others in enumerate(negatives) for j in others]
    return mean(products) ** 2 + max(0, mean([product**2 for product in products]) - 1 / len(anchors[0]))


def second_order_loop(anchors: Rows, positives: Rows, negatives: Negatives, neighbours: int = 8) -> float:
    terms = []
    for i in with_negatives(negatives):
        near: set[int] = set()
        for side in (anchors, positives):
            near |= set(sorted(negatives[i], key=lambda j: math.dist(side[i], side[j]))[:neighbours])
        squares = [
            (math.dist(anchors[i], anchors[j]) - math.dist(positives[i], positives[j])) ** 2 for j in sorted(near)
        ]
        terms.append(math.sqrt(sum(squares)))
    return mean(terms)


def hardnet_gor_loop(anchors: Rows, positives: Rows, negatives: Negatives) -> float:
    return hardnet_loop(anchors, positives, negatives) + global_orthogonal_loop(anchors, positives, negatives)


def hardnet_sos_loop(anchors: Rows, positives: Rows, negatives: Negatives) -> float:
    return hardnet_loop(anchors, positives, negatives) + second_order_loop(anchors, positives, negatives)


LOOPS: dict[str, Reference] = {
    "hardnet": hardnet_loop,
    "hardnet+gor": hardnet_gor_loop,
    "hardnet+sos": hardnet_sos_loop,
    "dynamic-margin": dynamic_margin_loop,
    "contrastive": contrastive_loop,
    "softmax": softmax_loop,
    "hardest-softmax": hardest_softmax_loop,
    "l2net": l2net_loop,
    "random-triplet": random_triplet_loop,
    "triplet-swap": triplet_swap_loop,
    "mined-contrastive": mined_contrastive_loop,
}
RANDOM: dict[str, Any] = {
    "random-triplet": random_triplet,
    "triplet-swap": triplet_swap,
    "mined-contrastive": mined_contrastive,
}


def by_loop(reference: Reference, anchors: Tensor, positives: Tensor, allowed: Tensor | None) -> float:
    count = len(anchors)
    negatives = [[j for j in range(count) if j != i and (allowed is None or allowed[i, j])] for i in range(count)]
    return reference(anchors.tolist(), positives.tolist(), negatives)


def seeded(name: str) -> DescriptorLoss:
    """A registered loss that gives the same each time it is called."""

    def random(anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor:
        of_name: Tensor = RANDOM[name](anchors, positives, allowed, generator=torch.Generator().manual_seed(SEED))
        return of_name

    return random if name in RANDOM else LOSSES[name]


every_loss = pytest.mark.parametrize("name", LOSSES)
masked = pytest.mark.parametrize("allowed", [None, mask(9)], ids=["all", "masked"])


@every_loss
@masked
def test_is_what_a_loop_over_pairs_gives(name: str, allowed: Tensor | None) -> None:
    anchors, positives = pairs(9, 4)
    expected = by_loop(LOOPS[name], anchors, positives, allowed)
    assert seeded(name)(anchors, positives, allowed).item() == pytest.approx(expected, rel=1e-12)


@every_loss
def test_float32_gives_the_loops_value_of_descriptors_as_in_training(name: str) -> None:
    anchors, positives = pairs(48, 128, dtype=torch.float32)
    expected = by_loop(LOOPS[name], anchors.double(), positives.double(), None)
    found = seeded(name)(anchors, positives)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-5)


@every_loss
@masked
def test_gradient_is_that_of_finite_differences(name: str, allowed: Tensor | None) -> None:
    anchors, positives = (side.requires_grad_() for side in pairs(9, 4))
    assert torch.autograd.gradcheck(lambda a, p: seeded(name)(a, p, allowed), (anchors, positives))


@masked
@pytest.mark.parametrize("neighbours", [1, 2, 3])
def test_second_order_compares_with_the_nearest_on_either_side(allowed: Tensor | None, neighbours: int) -> None:
    """Of fewer neighbours than there are, so that the two sides' differ and overlap."""
    anchors, positives = pairs(9, 4)
    expected = by_loop(partial(second_order_loop, neighbours=neighbours), anchors, positives, allowed)
    found = partial(second_order, allowed=allowed, neighbours=neighbours)
    assert found(anchors, positives).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(found, (anchors.requires_grad_(), positives.requires_grad_()))


@masked
def test_l2net_adds_the_terms_of_intermediate_features(allowed: Tensor | None) -> None:
    anchors, positives = pairs(9, 4)
    layers = [pairs(9, 6, seed=1), pairs(9, 3, seed=2)]
    layers[1] = (2 * layers[1][0], 2 * layers[1][1])  # features have any length

    def loop(first: Rows, second: Rows, negatives: Negatives) -> float:
        return both_ways_loop(lambda i, j: dot(first[i], second[j]), negatives)

    expected = [by_loop(loop, *layer, allowed) for layer in layers]
    for layer, value in zip(layers, expected, strict=True):
        assert feature_softmax(*layer, allowed).item() == pytest.approx(value, rel=1e-12)
        gradient_to = [side.clone().requires_grad_() for side in layer]
        assert torch.autograd.gradcheck(lambda a, p: feature_softmax(a, p, allowed), gradient_to)
    more = l2net(anchors, positives, allowed, layers) - l2net(anchors, positives, allowed)
    assert more.item() == pytest.approx(sum(expected), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "l2net"])
def test_how_close_masked_points_are_never_matters(name: str) -> None:
    """Points 0 and 5 are at right angles to all others and come close to each other; nothing else changes.

    L2-Net's correlation is of the dimensions, whatever the points; the parts that know negatives are tested here.
    """
    anchors, positives = (torch.zeros(6, 8, dtype=torch.float64) for _ in range(2))
    for rows, where in (([0], slice(0, 2)), ([5], slice(2, 4)), ([1, 2, 3, 4], slice(4, 8))):
        anchors[rows, where], positives[rows, where] = pairs(len(rows), where.stop - where.start, seed=where.start)
    turn = torch.eye(8, dtype=torch.float64)
    for i in (0, 1):
        cos, sin = math.cos(1.4), math.sin(1.4)
        turn[i, i], turn[i, i + 2], turn[i + 2, i], turn[i + 2, i + 2] = cos, -sin, sin, cos
    turned = [torch.cat([side[:5], side[5:] @ turn.T]) for side in (anchors, positives)]
    allowed = torch.ones(6, 6, dtype=torch.bool)
    loss = seeded(name)
    if name not in RANDOM:
        assert (loss(*turned, allowed) - loss(anchors, positives, allowed)).abs() > 0.01
    allowed[0, 5] = allowed[5, 0] = False
    torch.testing.assert_close(loss(*turned, allowed), loss(anchors, positives, allowed), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "l2net"])
def test_a_point_without_negatives_adds_nothing(name: str) -> None:
    anchors, positives = pairs(9, 4)
    allowed = torch.ones(9, 9, dtype=torch.bool)
    allowed[8] = allowed[:, 8] = False
    loss = seeded(name)
    torch.testing.assert_close(loss(anchors, positives, allowed), loss(anchors[:8], positives[:8]), rtol=1e-12, atol=0)
    gradient = torch.autograd.grad(loss(anchors.requires_grad_(), positives, allowed), anchors)[0]
    assert not gradient[8].any()
    assert gradient[:8].any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("count", [1, 5])
def test_a_batch_without_negatives_gives_zero(name: str, count: int) -> None:
    anchors, positives = (side.requires_grad_() for side in pairs(count, 4))
    value = seeded(name)(anchors, positives, torch.zeros(count, count, dtype=torch.bool))
    gradients = torch.autograd.grad(value, (anchors, positives))
    if name == "l2net":  # whose correlation knows no negatives
        value = value - (correlation(anchors) + correlation(positives)) / count
        assert all(gradient.isfinite().all() for gradient in gradients)
    else:
        assert not any(gradient.any() for gradient in gradients)
    assert value.item() == 0


@every_loss
@masked
def test_equal_descriptors_have_finite_gradients(name: str, allowed: Tensor | None) -> None:
    anchors, positives = pairs(9, 4, dtype=torch.float32)
    positives[0] = anchors[0]
    anchors[3] = anchors[1]
    positives[5] = positives[6]
    positives[7] = anchors[8]
    collapsed = anchors[:1].expand(9, -1).clone()
    for sides in ((anchors, positives), (anchors, anchors.clone()), (collapsed, collapsed.clone())):
        inputs = [side.clone().requires_grad_() for side in sides]
        value = seeded(name)(*inputs, allowed)
        assert value.isfinite()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, inputs))


def test_known_values() -> None:
    """Perfect descriptors, and those of a network that says the same of every patch."""
    perfect = torch.eye(6)
    same = perfect[:1].expand(6, -1)
    apart = math.sqrt(2)
    expected = {
        "hardnet": (0, 1),
        "contrastive": (0, 1),
        "random-triplet": (0, 1),
        "triplet-swap": (0, 1),
        "mined-contrastive": (4 - apart, 4),
        "dynamic-margin": (-apart, 0),
        "softmax": (math.log(1 + 5 * math.exp(-apart)), math.log(6)),
        "hardest-softmax": (math.log(1 + math.exp(-apart)), math.log(2)),
        "hardnet+sos": (0, 1),
        "hardnet+gor": (0, 1 + 1 + 1 - 1 / 6),
    }
    for name, (least, collapsed) in expected.items():
        # A distance of 0 counts as 0.001.
        assert seeded(name)(perfect, perfect).item() == pytest.approx(least, abs=2e-3), name
        assert seeded(name)(same, same).item() == pytest.approx(collapsed, abs=2e-3), name
    assert global_orthogonal(perfect, perfect).item() == 0
    # Two dimensions that say the same of every patch are fully correlated.
    assert correlation(torch.randn(50, 1).expand(-1, 2)).item() == pytest.approx(1, abs=1e-5)


def test_random_negatives_are_drawn_evenly_from_all_that_are_allowed() -> None:
    anchors, positives = pairs(9, 4)
    allowed = mask(9)
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([random_triplet(anchors, positives, allowed, generator=generator) for _ in range(4000)])
    distances = torch.cdist(anchors, positives)
    terms = (1 + distances.diagonal()[:, None] - distances).relu()
    negatives = allowed & ~torch.eye(9, dtype=torch.bool)
    used = negatives.any(1)
    expected = ((terms * negatives).sum(1)[used] / negatives.sum(1)[used]).mean()
    error = (found.std() / math.sqrt(len(found))).item()
    assert error < 0.005
    assert found.mean().item() == pytest.approx(expected.item(), abs=4 * error)


def test_random_negatives_follow_torchs_seed_where_no_generator_is_given() -> None:
    anchors, positives = pairs(9, 4)
    torch.manual_seed(SEED)
    found = LOSSES["random-triplet"](anchors, positives)
    assert torch.equal(found, seeded("random-triplet")(anchors, positives))
    assert not torch.equal(found, LOSSES["random-triplet"](anchors, positives))


@every_loss
def test_autocast_changes_nothing(name: str) -> None:
    anchors, positives = pairs(32, 16, dtype=torch.float32)
    expected = seeded(name)(anchors, positives)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(seeded(name)(anchors, positives), expected)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that is computed."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return result


@every_loss
def test_needs_no_tensor_larger_than_the_distance_matrix(name: str) -> None:
    anchors, positives = (side.requires_grad_() for side in pairs(64, 8, dtype=torch.float32))
    with Largest() as largest:
        seeded(name)(anchors, positives, mask(64)).backward()
    assert largest.elements == 64 * 64


@pytest.mark.parametrize("name", ["hardnet", "hardnet+gor", "hardnet+sos", "dynamic-margin", "softmax"])
def test_descending_it_makes_the_closest_descriptor_the_right_one(name: str) -> None:
    anchors, positives = (side.requires_grad_() for side in pairs(32, 8, dtype=torch.float32))
    optimiser = torch.optim.Adam([anchors, positives], 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        LOSSES[name](normalize(anchors, dim=1), normalize(positives, dim=1)).backward()
        optimiser.step()
    with torch.no_grad():
        similarity = normalize(anchors, dim=1) @ normalize(positives, dim=1).T
    assert torch.equal(similarity.argmax(0), torch.arange(32))
    assert torch.equal(similarity.argmax(1), torch.arange(32))


@masked
@pytest.mark.parametrize("name", sorted(ANY_LENGTH))
def test_descriptors_may_have_any_length(name: str, allowed: Tensor | None) -> None:
    anchors, positives = (3 * torch.linspace(0.2, 1, 9)[:, None] * side for side in pairs(9, 4))
    expected = by_loop(LOOPS[name], anchors, positives, allowed)
    assert seeded(name)(anchors, positives, allowed).item() == pytest.approx(expected, rel=1e-12)
    if name == "mined-contrastive":
        loop = partial(mined_contrastive_loop, margin=2.5, share=0.5)
        found = mined_contrastive(anchors, positives, allowed, 2.5, 0.5, torch.Generator().manual_seed(SEED))
        assert found.item() == pytest.approx(by_loop(loop, anchors, positives, allowed), rel=1e-12)


PAIR_TERMS: dict[str, Callable[[float, int], float]] = {
    "hinge": lambda score, y: max(0, 1 - y * score),
    "cross-entropy": lambda score, y: -math.log(1 / (1 + math.exp(-y * score))),
}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_loss_of_scores_is_the_mean_over_pairs_of_both_kinds(name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    positive, negative = (2 * torch.randn(9, generator=generator, dtype=torch.float64) for _ in range(2))
    used = torch.arange(9) % 3 > 0
    terms = [
        PAIR_TERMS[name](score, y) for scores, y in ((positive, 1), (negative, -1)) for score in scores[used].tolist()
    ]
    loss = PAIR_LOSSES[name]
    assert loss(positive, negative, used).item() == pytest.approx(mean(terms), rel=1e-12)
    inputs = (positive.requires_grad_(), negative.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, n: loss(p, n, used), inputs)
    gradients = torch.autograd.grad(loss(*inputs, used), inputs)
    assert not any(gradient[~used].any() for gradient in gradients)
    nothing = loss(*inputs, torch.zeros(9, dtype=torch.bool))
    assert nothing.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(nothing, inputs))


def test_margin_and_weights_are_options() -> None:
    anchors, positives = pairs(9, 4)
    wide, usual = hardnet(anchors, positives, margin=3), hardnet(anchors, positives, margin=2.5)
    assert (wide - usual).item() == pytest.approx(0.5)  # above all distances the hinge is straight
    for name, term in (("hardnet+gor", global_orthogonal), ("hardnet+sos", second_order)):
        weighted: Any = LOSSES[name]
        more = weighted(anchors, positives, weight=3) - weighted(anchors, positives, weight=1)
        torch.testing.assert_close(more, 2 * term(anchors, positives))
    assert softmax(anchors, positives) < l2net(anchors, positives)
