"""Compares losses on one network: contrastive, two kinds of softmax and triplet margin, each with several seeds.

    python pipelines/loss_comparison.py PATCHES... --validation HELD_OUT.h5 --workspace DIR --seeds 0 1 2 --steps 100

This repeats the comparison of HardNet's authors (Mishchuk et al., Working hard to know your neighbor's margins, NIPS
2017, section 4): contrastive, softmax and triplet margin, which is HardNet's loss. All three use the hardest negative
in the batch. L2-Net's softmax over all negatives is added. Nothing else differs: batches, augmentation and initial
weights are the same.

The folder gets the weights of every run, a table as CSV and a plot. Finished runs are not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro
from tyro.conf import OmitArgPrefixes

from hardnet_sfm.flags import flag_rules
from hardnet_sfm.literature.experiments import ExperimentOptions, run_experiment
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.training.sampling import SamplingOptions
from hardnet_sfm.training.train_options import TrainOptions

# Names of the losses in the table, and their names in `train --loss`.
LOSSES = {
    "contrastive": "contrastive",
    "softmax": "softmax",
    "hardest-softmax": "hardest-softmax",
    "triplet": "hardnet",
}


@dataclass(frozen=True, kw_only=True)
class Options(ExperimentOptions):
    """Contrastive, softmax and triplet margin on one network."""

    steps: int
    """Batches to train, of each run."""
    batch_size: int = 256
    """Pairs in a batch."""

    def variants(self) -> dict[str, TrainOptions]:
        """How to train, by loss."""
        return {
            title: TrainOptions(
                network=self.network,
                steps=self.steps,
                loss=loss,
                learning_rate=self.learning_rate,
                sampling=SamplingOptions(self.batch_size),
            )
            for title, loss in LOSSES.items()
        }


def main() -> None:
    options = tyro.cli(Options, config=(OmitArgPrefixes,), registry=flag_rules())
    with report_errors(options.debug):
        run_experiment("loss-comparison", options.variants(), options, "loss")


if __name__ == "__main__":
    main()
