"""Compares training runs that differ in one option, each with several seeds, on held-out patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.scores import MEAN, Measure, ScoreTable
from hardnet_sfm.files.photo_files import sha256_of
from hardnet_sfm.files.workspace import digest, locked, read_json, replacing, write_json
from hardnet_sfm.progress import ExactConsole
from hardnet_sfm.progress import console as errors
from hardnet_sfm.resources import Resources
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.verbs.train import train

if TYPE_CHECKING:  # torch takes seconds to import, matplotlib one; `--help` does without
    from matplotlib.figure import Figure

    from hardnet_sfm.literature.held_out import HeldOut

DEVIATION = "deviation"
_SEED = "seed "


@dataclass(frozen=True)
class ExperimentOptions:
    """Options that all runs of an experiment share."""

    patches: Annotated[tuple[Path, ...], Positional, arg(metavar="PATCHES")]
    """Files of patches to train on, as `mine` and `warp` write them."""
    validation: Path
    """File of patches to measure with. Take scenes that are not trained on."""
    workspace: Path
    """Folder for the weights of every run, the table and the plot. Finished runs are not repeated."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds. Every variant is trained once with each of them."""
    network: str = "hardnet"
    """Network to learn, as in `train`. Its descriptors must be compared by distance."""
    learning_rate: float | None = None
    """Learning rate, as in `train`, the same for all runs. Default: that of the network."""
    validation_batch: int = 512
    """Number of pairs that are compared with each other when measuring. It does not depend on the batches trained
    with."""
    debug: bool = False
    """Show where in the program an error came from."""
    resources: Resources = field(default_factory=Resources)

    def check(self) -> None:
        """Raises UsageError if a value is invalid."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError("--seeds must be one or more different numbers")


def compare(name: str, variants: Mapping[str, TrainOptions], options: ExperimentOptions) -> ScoreTable:
    """Trains every variant with every seed, and measures each on the same held-out pairs.

    All variants are trained with one seed before the next seed begins. A stopped run resumes from its checkpoint. The
    result of a finished run is read from disk.

    Args:
        name: name of the experiment, for the table.
        variants: options of training, by the name in the table. Their seeds are ignored.
        options: options that all runs share.

    Returns:
        False positive rate at 95 % recall and mean average precision of matching, by variant. The columns are the
        seeds, their mean and, for two or more seeds, their sample standard deviation.

    Raises:
        HardnetSfmError: patches are damaged or too few, or a training run fails.
        UsageError: the options contradict each other.
    """
    from hardnet_sfm.literature.held_out import HeldOut

    options.check()
    held_out = HeldOut(options.validation, options.validation_batch)
    held_out_sha256 = sha256_of(options.validation)
    found: dict[str, dict[str, dict[str, float]]] = {"fpr95": {}, "map": {}}
    with locked(options.workspace):
        for seed in options.seeds:
            for variant, train_options in variants.items():
                weights = options.workspace / f"{variant}-seed-{seed}.safetensors"
                _trained(weights, replace(train_options, seed=seed), options)
                known = digest(sha256_of(weights), held_out_sha256, options.validation_batch)
                measures = _measured(weights, held_out, known, options)
                for measure, value in measures.items():
                    found[measure].setdefault(variant, {})[f"{_SEED}{seed}"] = value
                said = ", ".join(f"{measure} {value:.4f}" for measure, value in measures.items())
                errors.print(f"{weights.stem}: {said}")
    titles = {"fpr95": "false positive rate at 95 % recall, %", "map": "mAP of matching, %"}
    return ScoreTable(
        name,
        tuple(
            Measure(
                measure,
                titles[measure],
                {variant: _with_spread(row) for variant, row in found[measure].items()},
                ".2%" if measure == "fpr95" else ".1%",
                lower_is_better=measure == "fpr95",
            )
            for measure in titles
        ),
        {variant: {"steps": one.steps, "batch_size": one.sampling.batch_size} for variant, one in variants.items()},
    )


def _trained(weights: Path, train_options: TrainOptions, options: ExperimentOptions) -> None:
    """Trains the weights, unless they are up to date."""
    begun = (weights.with_name(f"{weights.stem}.training") / "last.ckpt").is_file()
    train(options.patches, weights, replace(train_options, resume=begun), options.resources)


def _measured(weights: Path, held_out: HeldOut, known: str, options: ExperimentOptions) -> dict[str, float]:
    """Measures weights, and stores the result in a file next to them."""
    from hardnet_sfm.features.descriptors import make_descriptor

    kept = weights.with_suffix(".json")
    if kept.is_file() and (content := read_json(kept)).get("fingerprint") == known:
        return dict(content["measures"])
    measures = held_out.measures(make_descriptor(options.network, weights), options.resources)
    write_json(kept, {"fingerprint": known, "measures": measures})
    return measures


def _with_spread(row: Mapping[str, float]) -> dict[str, float]:
    values = list(row.values())
    spread = {DEVIATION: float(np.std(values, ddof=1))} if len(values) > 1 else {}
    return {**row, MEAN: float(np.mean(values)), **spread}


def of_seeds(measure: Measure) -> dict[str, list[float]]:
    """Returns the values of all seeds, by variant."""
    return {
        variant: [value for column, value in row.items() if column.startswith(_SEED)]
        for variant, row in measure.values.items()
    }


def describe_order(measure: Measure) -> str:
    """Says whether the variants have the same order, best first, with every seed."""
    orders: dict[tuple[str, ...], list[str]] = {}
    for column in (column for column in measure.columns if column.startswith(_SEED)):
        best_first = sorted(
            measure.values, key=lambda name: measure.values[name][column], reverse=not measure.lower_is_better
        )
        orders.setdefault(tuple(best_first), []).append(column.removeprefix(_SEED))
    if len(orders) == 1:
        (order,) = orders
        seeds = "the same order with every seed" if len(orders[order]) > 1 else "the order of this one seed"
        return f"{measure.name}: {seeds}: {', '.join(order)}"
    each = "; ".join(f"{', '.join(order)} (seed {', '.join(seeds)})" for order, seeds in orders.items())
    return f"{measure.name}: the order depends on the seed: {each}"


def run_experiment(
    name: str, variants: Mapping[str, TrainOptions], options: ExperimentOptions, axis: str
) -> ScoreTable:
    """Compares variants, prints the table and whether the order is stable, and writes `NAME.csv` and `NAME.png`.

    Args:
        name, variants, options: as for `compare`.
        axis: label of the variants in the plot.

    Raises:
        HardnetSfmError: `compare` raises it, or matplotlib is not installed.
        UsageError: the options contradict each other.
    """
    figure_class()  # a missing matplotlib is reported before the work
    table = compare(name, variants, options)
    output = ExactConsole()
    for title, printed in table.printed():
        output.print(title)
        output.print(printed)
    for measure in table.measures:
        output.print(describe_order(measure))
    csv, png = (options.workspace / f"{name}.{suffix}" for suffix in ("csv", "png"))
    with replacing(csv) as beside:
        beside.write_text(table.as_csv(), encoding="utf-8")
    draw(table.measures, png, axis)
    for path in (csv, png):
        output.print(escape(str(path)))
    return table


def figure_class() -> type[Figure]:
    """Returns matplotlib's Figure class, which draws without a window.

    Raises:
        HardnetSfmError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise HardnetSfmError(
            f"drawing needs more packages: {error}", "Install them: pip install hardnet-sfm[notebooks]"
        ) from error
    return Figure


def draw(measures: Sequence[Measure], path: Path, axis: str) -> None:
    """Draws each measure over the variants: a dot for each seed and a mark for the mean.

    A line joins the means if the names of the variants are numbers.

    Args:
        measures: measures to draw side by side; all values are shares.
        path: path of the PNG.
        axis: label of the variants.

    Raises:
        HardnetSfmError: matplotlib is not installed.
    """
    figure = figure_class()(figsize=(4.5 * len(measures), 3.6), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        names, values = list(measure.values), of_seeds(measure)
        places = np.arange(len(names))
        means = [100 * float(np.mean(values[name])) for name in names]
        if all(name.isdecimal() for name in names):
            axes.plot(places, means, "-", color="0.4", lw=1, zorder=1)
        axes.plot(places, means, "_", color="black", ms=16, mew=2, zorder=3, label="mean")
        for place, name in zip(places, names, strict=True):
            x = np.full(len(values[name]), place)
            axes.plot(x, 100 * np.array(values[name]), "o", color="C0", alpha=0.7, mew=0, zorder=2)
        axes.plot([], [], "o", color="C0", alpha=0.7, mew=0, label="a seed")
        axes.set(xticks=places, xticklabels=names, xlabel=axis, ylabel=measure.title, xlim=(-0.5, len(names) - 0.5))
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title("lower is better" if measure.lower_is_better else "higher is better", fontsize="small")
    figure.axes[0].legend(frameon=False)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
