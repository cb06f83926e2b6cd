"""Measures descriptors on all given benchmarks and writes one table.

    python pipelines/descriptor_table.py --workspace DIR --descriptor rootsift hardnet --weights tfeat.safetensors \\
        --validation held-out.h5 --homography HOMOGRAPHY --hpatches MADE --scenes LUND-DOOR FOUNTAIN/images

Every option that names data adds columns. Benchmarks without data are left out. The folder keeps all results in
`results.json`, so an additional descriptor or benchmark costs only its own time. Data that changed on disk are measured
again. Each run also writes `descriptor-table.md`, `.csv` and `.png` there.

The figures are those of `hardnet-sfm evaluate`, of `train --validation` and of `reconstruct`, with their defaults.
Oxford5k and Paris6k, or parts of them in the same layout, each use visual words learned from the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import OmitArgPrefixes

from hardnet_sfm.competitors import Competitor, competitors, make_descriptors
from hardnet_sfm.errors import UsageError
from hardnet_sfm.evaluation.scores import MEAN, ScoreTable
from hardnet_sfm.features.extraction import ExtractOptions, KeypointOptions
from hardnet_sfm.files.workspace import digest, locked, read_json, replacing, write_json
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.literature.descriptor_table import Column, DescriptorTable
from hardnet_sfm.literature.experiments import figure_class
from hardnet_sfm.progress import console as errors
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.methods import DEFAULT_METHOD, Method
from hardnet_sfm.terminal import output, report_errors
from hardnet_sfm.verbs.match import MatchOptions
from hardnet_sfm.verbs.vocabulary import VocabularyOptions

Values = Mapping[str, float]


@dataclass(frozen=True)
class Options:
    """All descriptors on all benchmarks that are there."""

    workspace: Path
    """Folder for all that is made."""
    descriptor: tuple[str, ...] = ("rootsift", "hardnet")
    """Rows of the table. hardnet and hardnet-fast have the weights that come with the package."""
    weights: tuple[str, ...] = ()
    """More rows: .safetensors files. Networks that compare patches, as matchnet, re-score the neighbours of HardNet on
    photos, and have no values where descriptors are needed."""
    validation: Path | None = None
    """patches.h5 of scenes that nothing was trained on."""
    validation_batch: int = 512
    """Pairs of it that are compared with each other."""
    homography: Path | None = None
    """Sequences of photos, as for `evaluate homography`."""
    hpatches: Path | None = None
    """Patches, as for `evaluate hpatches`, or made by `pipelines/make_hpatches.py`."""
    tasks: Path | None = None
    """Of HPatches. Default: the folder `tasks` in it."""
    split: str = "full"
    """Of HPatches."""
    brown: Path | None = None
    """As for `evaluate brown`."""
    w1bs: Path | None = None
    """As for `evaluate w1bs`."""
    scenes: tuple[Path, ...] = ()
    """Folders of photos to reconstruct."""
    oxford5k: Path | None = None
    """As for `evaluate oxford5k`; together with --paris6k."""
    paris6k: Path | None = None
    """As for `evaluate paris6k`; together with --oxford5k."""
    method: Method = DEFAULT_METHOD
    """Of retrieval."""
    debug: bool = False
    """Show where in the program an error came from."""
    words: VocabularyOptions = field(default_factory=VocabularyOptions)
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True)
class Benchmark:
    """What is measured on one data set.

    Attributes:
        columns: that it gives.
        recipe: everything but the descriptor that decides what the values are, fit for JSON.
        run: measures descriptors; each one's name and values, as they are finished.
        of_pairs: it measures networks that compare patches, too.
        of_neighbours: it has them score the neighbours of HardNet, with its shipped weights.
    """

    columns: tuple[Column, ...]
    recipe: Any
    run: Callable[[list[Competitor]], Iterable[tuple[str, Values]]]
    of_pairs: bool = False
    of_neighbours: bool = False

    def key(self, row: Competitor) -> str:
        """Under which a descriptor's values are kept."""
        decided_by = [[column.name for column in self.columns], self.recipe, row.descriptor, row.weights_sha256]
        if self.of_neighbours and row.compares:
            decided_by += [hardnet.weights_sha256 for hardnet in competitors(["hardnet"], ())]
        return digest(*decided_by)


def state_of(path: Path) -> list[Any]:
    """What tells whether data on disk are still the same: names, sizes and times of all files."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder", "Leave out what there are no data for.")
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file.relative_to(path).as_posix(), file.stat()) for file in files if file.is_file()]
    return [path.name, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]


def benchmarks(options: Options) -> list[Benchmark]:
    """All that there are data for, cheap ones first.

    Raises:
        UsageError: contradictory options, or data that are not there.
    """
    if (options.oxford5k is None) != (options.paris6k is None):
        raise UsageError("--oxford5k and --paris6k each learn the words of the other", "Give both, or none.")
    names = [scene_name(images) for images in options.scenes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two of the scenes would be called {twice[0]}", "Rename the folder of one.")
    resources = options.resources
    found = [costs(resources)]
    if options.validation is not None:
        found.append(held_out(options.validation, options.validation_batch, resources))
    if options.homography is not None:
        found.append(homographies(options.homography, resources))
    if options.hpatches is not None:
        found.append(hpatches(options.hpatches, options.tasks, options.split, resources))
    if options.w1bs is not None:
        found.append(w1bs(options.w1bs, resources))
    if options.brown is not None:
        found.append(brown(options.brown, resources))
    found += [scene(images, options.workspace, resources) for images in options.scenes]
    if options.oxford5k is not None and options.paris6k is not None:
        found.append(landmarks("oxford5k", options.oxford5k, options.paris6k, options))
        found.append(landmarks("paris6k", options.paris6k, options.oxford5k, options))
    return found


def costs(resources: Resources) -> Benchmark:
    """Dimension and parameters; multiplications and additions of convolutions and matrix products; speed here.

    Of networks that compare patches, work and speed are those of a pair.
    """
    columns = (
        Column("dimension", "dimension", ".0f"),
        Column("parameters", "parameters", ",.0f"),
        Column("mflop", "MFLOP a patch", ".1f"),
        Column("patches_per_second", "patches/s", ",.0f", "higher"),
    )

    def run(rows: list[Competitor]) -> Iterator[tuple[str, Values]]:
        from hardnet_sfm.literature.costs import measure_cost, measure_pair_cost

        for row in rows:
            yield row.name, (measure_pair_cost if row.compares else measure_cost)(row, resources)

    return Benchmark(columns, [resources.device, resources.threads], run, of_pairs=True)


def held_out(path: Path, batch_size: int, resources: Resources) -> Benchmark:
    columns = (
        Column("held_out_fpr95", f"FPR95 {path.stem}, %", ".2%", "lower"),
        Column("held_out_map", f"mAP {path.stem}, %", ".1%", "higher"),
    )

    def run(rows: list[Competitor]) -> Iterator[tuple[str, Values]]:
        from hardnet_sfm.literature.held_out import HeldOut

        pairs = HeldOut(path, batch_size)
        for row in rows:
            if row.compares:
                measures = pairs.measures_of_pairs(row.load(), resources)
            else:
                measures = pairs.measures(row.make(), resources)
            yield row.name, {f"held_out_{name}": value for name, value in measures.items()}

    return Benchmark(columns, [state_of(path), batch_size], run, of_pairs=True)


def homographies(folder: Path, resources: Resources) -> Benchmark:
    def run(rows: list[Competitor]) -> Iterable[tuple[str, Values]]:
        from hardnet_sfm.evaluation.photo_scores import evaluate_homographies

        return means(evaluate_homographies(folder, rows, resources), rows, {"homography_map": "map"})

    columns = (Column("homography_map", "homography mAP", ".3f", "higher"),)
    return Benchmark(columns, state_of(folder), run, of_pairs=True, of_neighbours=True)


def hpatches(folder: Path, tasks: Path | None, split: str, resources: Resources) -> Benchmark:
    kinds = {f"hpatches_{kind}": f"{kind}_{'ap' if kind == 'verification' else 'map'}" for kind in HPATCHES_TASKS}

    def run(rows: list[Competitor]) -> Iterable[tuple[str, Values]]:
        from hardnet_sfm.evaluation.patch_scores import evaluate_hpatches

        return means(evaluate_hpatches(folder, rows, resources, tasks=tasks, split=split), rows, kinds)

    columns = tuple(Column(f"hpatches_{kind}", f"HPatches {kind} mAP, %", ".1%", "higher") for kind in HPATCHES_TASKS)
    recipe = [state_of(folder), state_of(tasks) if tasks else None, split]
    return Benchmark(columns, recipe, run, of_pairs=True)


HPATCHES_TASKS = ("verification", "matching", "retrieval")


def w1bs(folder: Path, resources: Resources) -> Benchmark:
    def run(rows: list[Competitor]) -> Iterable[tuple[str, Values]]:
        from hardnet_sfm.evaluation.patch_scores import evaluate_w1bs

        return means(evaluate_w1bs(folder, rows, resources), rows, {"w1bs_mauc": "mauc"})

    return Benchmark((Column("w1bs_mauc", "W1BS mAUC", ".3f", "higher"),), state_of(folder), run)


def brown(folder: Path, resources: Resources) -> Benchmark:
    """The mean of the sets that a descriptor was not trained on."""

    def run(rows: list[Competitor]) -> Iterable[tuple[str, Values]]:
        from hardnet_sfm.evaluation.patch_scores import evaluate_brown

        return means(evaluate_brown(folder, rows, resources), rows, {"brown_fpr95": "fpr95"})

    columns = (Column("brown_fpr95", "FPR95 Brown, %", ".2%", "lower"),)
    return Benchmark(columns, state_of(folder), run, of_pairs=True)


def means(table: ScoreTable, rows: list[Competitor], wanted: Mapping[str, str]) -> Iterator[tuple[str, Values]]:
    """The mean columns of measures of a table, by the names that they have here."""
    values = {measure.name: measure.values for measure in table.measures}
    for row in rows:
        yield (
            row.name,
            {
                column: values[measure][row.name][MEAN]
                for column, measure in wanted.items()
                if MEAN in values.get(measure, {}).get(row.name, {})
            },
        )


def scene(images: Path, workspace: Path, resources: Resources) -> Benchmark:
    name = scene_name(images)
    columns = (
        Column(f"{name}_photos", f"{name}: photos", ".0f", "higher"),
        Column(f"{name}_track_length", f"{name}: track length", ".2f", "higher"),
    )

    def run(rows: list[Competitor]) -> Iterator[tuple[str, Values]]:
        from hardnet_sfm.verbs.reconstruct import reconstruct

        for row in rows:
            place = workspace / "scenes" / f"{name}-{digest(str(images.resolve()))[:6]}" / row.folder
            model = reconstruct(
                images,
                place,
                # A network that compares patches re-scores HardNet's neighbours, as `match --rescore` does.
                extract_options=ExtractOptions() if row.compares else row.extract_options(KeypointOptions()),
                match_options=MatchOptions(rescore=row.weights if row.compares else None),
                resources=resources,
                report=False,
            )
            yield (
                row.name,
                dict(zip((one.name for one in columns), (len(model.names), model.mean_track_length), strict=True)),
            )

    return Benchmark(columns, state_of(images), run, of_pairs=True, of_neighbours=True)


def scene_name(images: Path) -> str:
    """Of a folder of photos; one that is called `images` is named by what it is in."""
    return images.resolve().parent.name if images.name == "images" else images.resolve().name


def landmarks(name: Any, folder: Path, words_from: Path, options: Options) -> Benchmark:
    column = Column(f"{name}_map", f"{name} mAP, %", ".1%", "higher")

    def run(rows: list[Competitor]) -> Iterator[tuple[str, Values]]:
        from hardnet_sfm.verbs.evaluate import evaluate_landmarks

        for row in rows:
            table = evaluate_landmarks(
                name,
                folder,
                options.workspace,
                [words_from],
                [row],
                methods=[options.method],
                vocabulary_options=options.words,
                resources=options.resources,
            )
            (setup,) = table.setups
            mean = table.rows[row.name][options.method].mean(setup)
            yield row.name, {} if mean is None else {column.name: mean.average_precision}

    recipe = [state_of(folder), state_of(words_from), options.method, asdict(options.words)]
    return Benchmark((column,), recipe, run)


def measured(rows: list[Competitor], asked: list[Benchmark], kept: Path) -> dict[str, dict[str, float]]:
    """The values of all descriptors by column; what is not kept from before is measured and kept."""
    results = read_json(kept) if kept.is_file() else {}
    for benchmark in asked:
        able = [row for row in rows if benchmark.of_pairs or not row.compares]
        missing = [row for row in able if benchmark.key(row) not in results]
        by_name = {row.name: row for row in missing}
        for name, values in benchmark.run(missing) if missing else ():
            results[benchmark.key(by_name[name])] = {"descriptor": name, "values": dict(values)}
            write_json(kept, results)
            said = ", ".join(f"{column.title} {column.cell(values.get(column.name))}" for column in benchmark.columns)
            errors.print(f"{escape(name)}: {escape(said)}")
    kept_of = {row.name: [results.get(one.key(row), {"values": {}}) for one in asked] for row in rows}
    return {name: {k: v for one in found for k, v in one["values"].items()} for name, found in kept_of.items()}


def descriptor_table(options: Options) -> DescriptorTable:
    """Measures what is missing, prints the table and writes it."""
    figure_class()  # a missing matplotlib is reported before the work
    rows = competitors(options.descriptor, options.weights)
    make_descriptors(row for row in rows if not row.compares)
    with locked(options.workspace):
        asked = benchmarks(options)
        values = measured(rows, asked, options.workspace / "results.json")
        table = DescriptorTable([column for one in asked for column in one.columns], values)
        base = options.workspace / "descriptor-table"
        for suffix, text in ((".md", table.as_markdown()), (".csv", table.as_csv())):
            with replacing(base.with_suffix(suffix)) as beside:
                beside.write_text(text, encoding="utf-8")
        table.draw(base.with_suffix(".png"))
    Console().print(*table.printed(), sep="\n")
    for suffix in (".md", ".csv", ".png"):
        output.print(escape(str(base.with_suffix(suffix))))
    return table


def main() -> None:
    options = tyro.cli(Options, config=(OmitArgPrefixes,), registry=flag_rules())
    with report_errors(options.debug):
        descriptor_table(options)


if __name__ == "__main__":
    main()
