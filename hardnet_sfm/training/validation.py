"""How well a network tells held-out points apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hardnet_sfm.evaluation.measures import average_precision, fpr95
from hardnet_sfm.training.patches import PatchSet
from hardnet_sfm.training.sampling import Sampler, SamplingOptions

BATCHES = 4
BATCH_SIZE = 512


def held_out_sampler(patches: PatchSet, batch_size: int = BATCH_SIZE) -> Sampler:
    """Batches to validate on, the same in every run: all of two photos at a time, where these share enough points."""
    apart = SamplingOptions(batch_size, same_photos=1.0, a_pair_of_photos=batch_size)
    return Sampler([patches], [1.0], apart, seed=0)


def measures_of(distances: Tensor, same: Tensor, others: Tensor, *, scores: bool = False) -> dict[str, float]:
    """False positive rate at 95 % recall, and mean average precision of matching.

    Args:
        distances: (A, P) between anchors and positives.
        same: (A, P) bool, which are of one point; one in each row.
        others: (A, P) bool, which are of two.
        scores: whether they are scores, turned about, which have no zero.
    """
    compared = same | others
    # Matching: every anchor takes its nearest, ranked by how much nearer it is than the next: by the ratio of the
    # distances or by the difference of the scores.
    candidates = distances.masked_fill(~compared, torch.inf)
    nearest, second = candidates.topk(2, dim=1, largest=False).values.unbind(1)
    doubt = nearest - second if scores else nearest / second
    right = candidates[same] == nearest
    return {
        "fpr95": fpr95(distances[compared].numpy(), same[compared].numpy()),
        "map": average_precision(doubt.numpy(), right.numpy(), len(right)),
    }


@torch.inference_mode()
def validated(network: nn.Module, sampler: Sampler, patch_size: int, device: str) -> dict[str, float]:
    """The measures of a network whose descriptors are of unit length, means over the first batches of a sampler."""
    found = []
    for number in range(BATCHES):
        batch = sampler(number)
        sides = []
        for patches in (batch.anchors, batch.positives):
            grey = torch.from_numpy(patches).to(device).unsqueeze(1).float() / 255
            sides.append(network(torch.nn.functional.avg_pool2d(grey, grey.shape[-1] // patch_size)))
        distances = (2 - 2 * sides[0] @ sides[1].T).clamp(min=0).sqrt().cpu()
        found.append(
            measures_of(distances, torch.eye(len(distances), dtype=torch.bool), torch.from_numpy(batch.allowed))
        )
    return {name: sum(measures[name] for measures in found) / BATCHES for name in found[0]}
