"""How well a network tells held-out points apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.measures import average_precision, fpr95
from hardnet_sfm.files.patch_sets import PatchSet
from hardnet_sfm.training.sampling import Batch, Sampler, SamplingOptions

BATCHES = 4  # of each scene
BATCH_SIZE = 512


class HeldOutBatches:
    """Batches to validate on, the same in every run: each of one scene, all of two photos where these share enough.

    Args:
        scenes: patches of each.
        batch_size: pairs in each; 512 where nothing is said, or all points of a scene that has fewer. Measures change
            with this number.

    Attributes:
        count: of the batches, `BATCHES` a scene.

    Raises:
        HardnetSfmError: a scene has too few points for a batch, or they are all too near each other.
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
        """The batch of the given number; scenes take turns."""
        turn, scene = divmod(number, len(self._samplers))
        return self._samplers[scene](turn)


def _too_small(patches: PatchSet, why: str) -> HardnetSfmError:
    return HardnetSfmError(f"{patches.path}: too little to measure with: {why}", "Mine a larger scene for it.")


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
    # distances or by the difference of the scores. Of several that are equally near, none is found.
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
    """The measures of a network whose descriptors are of unit length, means over the batches."""
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
