"""Draws the derivatives of three losses over the plane of positive and negative distances.

    python pipelines/loss_derivatives.py loss-derivatives.png

Each place in the plane has descriptors of two pairs. Both matching distances are d+, and both other distances are d-.
The losses of `train` are differentiated through these descriptors, so the plot shows the gradients that a network
receives. With two pairs there is only one negative for each, for the hardest negative and for softmax alike.

Triplet margin changes both distances equally while the margin of 1 is violated, and has no gradient otherwise.
Contrastive still pulls pairs that are already good. It does not push a negative beyond the margin, however far apart
the pair is. Softmax has a soft step on the diagonal; triplet margin has a sharp edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from hardnet_sfm.errors import UsageError
from hardnet_sfm.files.workspace import replacing
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.literature.experiments import figure_class
from hardnet_sfm.literature.published_losses import contrastive, softmax
from hardnet_sfm.terminal import output, report_errors
from hardnet_sfm.training.losses import hardnet
from hardnet_sfm.training.objectives import DescriptorLoss

LOSSES: dict[str, DescriptorLoss] = {"contrastive": contrastive, "softmax": softmax, "triplet margin": hardnet}
FARTHEST = 2.0  # largest distance of descriptors of unit length


@dataclass(frozen=True)
class Options:
    """Derivatives of losses over the plane of positive and negative distances."""

    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PNG")]
    """The plot."""
    cells: int = 101
    """Of the plane, to each side; if odd, no edge of a loss goes through the middle of a cell."""
    debug: bool = False
    """Show where in the program an error came from."""


def pairs_at(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Two anchors and two positives of unit length, d(a_i, p_i) and d(a_i, p_j) all as given.

    With c = 1 - d+^2 / 2 and s = 1 - d-^2 / 2 the cosines, the sums of the two anchors and of the two positives have
    the inner product 2 (c + s), their differences 2 (c - s), and sums are orthogonal to differences. So two pairs of
    vectors in two planes do; how long the sums are is free within bounds, and the middle of these is taken.

    Args:
        positive, negative: scalars above 0 and below 2.

    Returns:
        (2, 4) and (2, 4).
    """
    cosine, other = 1 - positive**2 / 2, 1 - negative**2 / 2
    of_sums, of_differences = cosine + other, cosine - other
    # Half the squared lengths. Each is at least as large as its inner product requires, and their sum is 2.
    sums = (1 + (of_sums.abs() - of_differences.abs()) / 2).detach()
    differences = 2 - sums

    def in_plane(product: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        """Two vectors of a squared length and an inner product."""
        turned = (1 - (product / square) ** 2).sqrt()
        first = torch.stack([torch.ones_like(product), torch.zeros_like(product)])
        return square.sqrt() * first, square.sqrt() * torch.stack([product / square, turned])

    sum_a, sum_p = in_plane(of_sums, sums)
    difference_a, difference_p = in_plane(of_differences, differences)
    sides = [
        torch.stack([torch.cat([total, apart]), torch.cat([total, -apart])]) / 2**0.5
        for total, apart in ((sum_a, difference_a), (sum_p, difference_p))
    ]
    return sides[0], sides[1]


def derivatives(loss: DescriptorLoss, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Those of a loss by the distance of matching and by that of other descriptors, at (N,) places."""

    def at(one: Tensor, other: Tensor) -> Tensor:
        return loss(*pairs_at(one, other))

    by: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = torch.func.vmap(torch.func.grad(at, argnums=(0, 1)))
    return by(positive, negative)


def plane(cells: int) -> tuple[Tensor, Tensor]:
    """(cells^2,) positive and negative distances in the middles of cells, the negative ones by row."""
    middles = (torch.arange(cells, dtype=torch.float64) + 0.5) * FARTHEST / cells
    negative, positive = torch.meshgrid(middles, middles, indexing="ij")
    return positive.flatten(), negative.flatten()


def draw(found: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]], path: Path) -> None:
    """Draws (cells, cells) derivatives of each loss: by the positive distance above, by the negative one below."""
    figure = figure_class()(figsize=(3.2 * len(found) + 1, 6), layout="constrained")
    axes = figure.subplots(2, len(found), sharex=True, sharey=True, squeeze=False)
    for column, (name, both) in enumerate(found.items()):
        for row, (values, by) in enumerate(zip(both, ("+", "-"), strict=True)):
            one = axes[row, column]
            extent = (0, FARTHEST, 0, FARTHEST)
            image = one.imshow(
                values, "RdBu_r", vmin=-1, vmax=1, origin="lower", extent=extent, interpolation="nearest"
            )
            one.plot(extent[:2], extent[:2], ":", color="0.4", lw=1)
            one.set_title(f"{name}: $\\partial L / \\partial d_{by}$", fontsize="medium")
    for one in axes[-1]:
        one.set_xlabel("positive distance $d_+$")
    for one in axes[:, 0]:
        one.set_ylabel("negative distance $d_-$")
    figure.colorbar(image, ax=axes, shrink=0.8, label="red: gets smaller, blue: gets larger")
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def main() -> None:
    options = tyro.cli(Options, registry=flag_rules())
    with report_errors(options.debug):
        if options.cells < 1:
            raise UsageError("--cells must be at least 1")
        figure_class()
        found = {}
        for name, loss in LOSSES.items():
            both = derivatives(loss, *plane(options.cells))
            by_positive, by_negative = (side.reshape(options.cells, options.cells).numpy() for side in both)
            found[name] = by_positive, by_negative
        draw(found, options.output)
        output.print(str(options.output))


if __name__ == "__main__":
    main()
