"""Compares batch sizes, each with several seeds, at the same total number of pairs.

    python pipelines/batch_size.py PATCHES... --validation HELD_OUT.h5 --workspace DIR --seeds 0 1 2 --pairs 25600

A larger batch has a harder hardest negative (Mishchuk et al., Working hard to know your neighbor's margins, NIPS 2017,
section 4, where batches of 512 and more perform best). Every run sees the same number of pairs. Runs with small batches
therefore take more steps, at the same learning rate. With equal numbers of steps, large batches would see more pairs.
Batch normalisation uses the same number of patches in all runs, or the whole batch if that is smaller.
Instead of --pairs, --steps gives the number of batches of the largest size.
The folder gets the weights of every run, a table as CSV and a plot. Finished runs are not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro
from rich.console import Console
from tyro.conf import OmitArgPrefixes

from hardnet_sfm.errors import UsageError
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.literature.experiments import ExperimentOptions, run_experiment
from hardnet_sfm.networks.architectures import ARCHITECTURES
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.training.sampling import SamplingOptions
from hardnet_sfm.training.train_options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class Options(ExperimentOptions):
    """Batches of different size, at the same number of pairs in all."""

    pairs: int | None = None
    """That each run sees, to the next whole batch."""
    steps: int | None = None
    """Batches of the largest size, which say how many pairs there are."""
    sizes: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Pairs in a batch."""
    loss: str = "hardnet"
    """As in `train`."""
    norm_batch: int | None = None
    """As in `train`. Default: 256, on a GPU, too, for networks with batch normalisation."""

    def variants(self) -> dict[str, TrainOptions]:
        """How to train, by size.

        Raises:
            UsageError: contradictory options.
        """
        if (self.pairs is None) == (self.steps is None):
            raise UsageError("give one of --pairs and --steps")
        if not self.sizes or min(self.sizes) < 2:
            raise UsageError("--sizes must be one or more numbers, of 2 and more")
        total = self.pairs if self.steps is None else self.steps * max(self.sizes)
        if total is None or total < 1:
            raise UsageError("--pairs and --steps must be above 0")
        # All batch sizes use the same number, because otherwise their statistics would differ as well.
        norm_batch = 256 if self.norm_batch is None and ARCHITECTURES.find(self.network).normalised else self.norm_batch
        return {
            str(size): TrainOptions(
                network=self.network,
                steps=-(-total // size),
                loss=self.loss,
                learning_rate=self.learning_rate,
                norm_batch=norm_batch,
                sampling=SamplingOptions(size),
            )
            for size in sorted(set(self.sizes))
        }


def main() -> None:
    options = tyro.cli(Options, config=(OmitArgPrefixes,), registry=flag_rules())
    with report_errors(options.debug):
        variants = options.variants()
        run_experiment("batch-size", variants, options, "pairs in a batch")
        each = ", ".join(f"{one.steps} of {size}" for size, one in variants.items())
        seen = sorted({one.steps * one.sampling.batch_size for one in variants.values() if one.steps})
        amount = f"{seen[0]}" if len(seen) == 1 else f"{seen[0]} to {seen[-1]}"
        Console(highlight=False, soft_wrap=True).print(f"every run saw {amount} pairs: batches {each}")


if __name__ == "__main__":
    main()
