"""Measures how well a network distinguishes held-out points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.measures import average_precision, fpr95
from hardnet_sfm.patch_set import PatchSet
from hardnet_sfm.training.sampling import Batch, Sampler, SamplingOptions

BATCHES = 4  # number of batches from each scene
BATCH_SIZE = 512


class HeldOutBatches:
    """Validation batches, the same in every run.

    Each batch comes from one scene. All its pairs come from the same two photos if these share enough points.

    Args:
        scenes: patch set of each scene.
        batch_size: number of pairs in a batch. The default is 512, or all points of a scene that has fewer. The
            measures depend on this number.

    Attributes:
        count: number of batches, `BATCHES` for each scene.

    Raises:
        HardnetSfmError: a scene has too few points for a batch, or all its points are too close to each other.
    """

    def __init__(self, scenes: Sequence[PatchSet], batch_size: int | None = None) -> None:
        self.count = BATCHES * len(scenes)
        self._samplers = []
        for patches in scenes:
            size = batch_size or max(2, min(BATCH_SIZE, len(patches.matchable)))
            apart = SamplingOptions(size, same_photos=1.0, a_pair_of_photos=size)
            if len(patches.matchable) < size:
                raise _too_small(patches, f"{len(patches.matchable)} points seen in two photos, {size} are needed")
            sampler = Sampler([patches], [1.0], apart, seed=0)
            if not all(sampler.draw(number).allowed.any() for number in range(BATCHES)):
                raise _too_small(patches, "no two points are so far apart that they must look different")
            self._samplers.append(sampler)

    def __call__(self, number: int) -> Batch:
        """Returns the batch with the given number. Scenes take turns."""
        turn, scene = divmod(number, len(self._samplers))
        return self._samplers[scene](turn)


def _too_small(patches: PatchSet, why: str) -> HardnetSfmError:
    return HardnetSfmError(f"{patches.origin}: too little to measure with: {why}", "Mine a larger scene for it.")


def measures_of(distances: Tensor, same: Tensor, others: Tensor, *, scores: bool = False) -> dict[str, float]:
    """Computes the false positive rate at 95 % recall and the mean average precision of matching.

    Args:
        distances: (A, P) distances between anchors and positives.
        same: (A, P) bool, whether both patches show the same point; exactly one in each row does.
        others: (A, P) bool, whether the patches show different points.
        scores: True if the distances are negated scores. Ratios are then meaningless, because scores have no zero.
    """
    compared = same | others
    # Matching: every anchor is matched to its nearest positive. Matches are ranked by how much nearer that is than the
    # second nearest: by the ratio of the distances, or by the difference of the scores. A tie counts as wrong.
    candidates = distances.masked_fill(~compared, torch.inf)
    nearest, second = candidates.topk(2, dim=1, largest=False).values.unbind(1)
    tied = nearest == second
    doubt = nearest - second if scores else torch.where(tied, 1, nearest / second)
    right = (candidates[same] == nearest) & ~tied
    return {
        "fpr95": fpr95(distances[compared].numpy(), same[compared].numpy()),
        "map": average_precision(doubt.numpy(), right.numpy(), len(right)),
    }


@torch.inference_mode()
def validated(network: nn.Module, batches: HeldOutBatches, patch_size: int, device: str) -> dict[str, float]:
    """Computes the measures of a network whose descriptors have unit length, as means over the batches."""
    found = []
    for number in range(batches.count):
        batch = batches(number)
        sides = []
        for patches in (batch.anchors, batch.positives):
            grey = torch.from_numpy(patches).to(device).unsqueeze(1).float() / 255
            sides.append(network(torch.nn.functional.avg_pool2d(grey, grey.shape[-1] // patch_size)))
        distances = (2 - 2 * sides[0] @ sides[1].T).clamp(min=0).sqrt().cpu()
        found.append(
            measures_of(distances, torch.eye(len(distances), dtype=torch.bool), torch.from_numpy(batch.allowed))
        )
    return {name: sum(measures[name] for measures in found) / len(found) for name in found[0]}
