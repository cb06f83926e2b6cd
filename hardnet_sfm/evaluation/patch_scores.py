"""Runs `evaluate brown`, `evaluate w1bs` and `evaluate hpatches`: describes or compares patches and measures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float16
from hardnet_sfm.competitors import DESCRIPTORS, Competitor, Spanning, collect_facts, competitors, make_descriptors
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.datasets import brown, hpatches
from hardnet_sfm.evaluation.datasets.parts import check_any, describe_left_out
from hardnet_sfm.evaluation.datasets.w1bs import NUISANCES, find_columns
from hardnet_sfm.evaluation.hpatches_tasks import (
    POOLS,
    VerificationScore,
    match_sequence,
    pair_distances,
    retrieve,
    verify,
)
from hardnet_sfm.evaluation.patch_streams import PairStream, PatchStream
from hardnet_sfm.evaluation.scores import MEAN, Measure, ScoreTable, append_mean
from hardnet_sfm.measures import false_positive_rates, fpr95, score_columns
from hardnet_sfm.progress import Advance, progress
from hardnet_sfm.resources import Resources

_Verified = Mapping[tuple[hpatches.Level, str], VerificationScore]
_PAIRS = 2**16
# Spellings of the names of Brown's sets in papers and files. "Statue of Liberty" names other sets of photos.
_SPELLED = {"liberty": r"(?<!of)(?<!of[\s_-])liberty", "notredame": r"notre[\s_-]?dame", "yosemite": "yosemite"}


def evaluate_brown(
    folder: Path | str, rows: Sequence[Competitor] | None = None, resources: Resources | None = None
) -> ScoreTable:
    """Measures the false positive rate at 95 % recall of the official pairs of Brown's PhotoTour.

    The name or metadata of a row's weights may mention the sets it was trained on. The row is then marked on these
    sets, and its mean is over the other sets. Weights trained on each of the three sets thus give the six combinations
    of the literature.

    Lower bound of the cost: every patch is described once, 450 000 to 630 000 patches a set. A CPU that describes 9000
    a second takes a minute for each set and descriptor. A network that compares patches compares 100 000 pairs, which
    takes half a minute at 42 MFLOP a pair. Memory: 512 bytes a patch of 128 dimensions, 320 MB at most, and one sheet.
    A network that compares patches needs at most 4 KB for each patch in a pair.

    Args:
        folder: one set, or a folder with some of the sets liberty, notredame and yosemite.
        rows: descriptors, see `competitors`. None means RootSIFT, and HardNet with its shipped weights.
        resources: threads and device to use.

    Raises:
        HardnetSfmError: a set is incomplete or damaged, or a descriptor cannot be made.
    """
    rows, resources = competitors(DESCRIPTORS, ()) if rows is None else rows, resources or Resources()
    streams = _streams(rows, resources)
    sets = brown.find_brown(Path(folder))
    pairs = {name: brown.read_pairs(brown.find_pairs(one), one) for name, one in sets.items()}
    values: dict[str, dict[str, float]] = {name: {} for name in streams}
    curves: dict[str, dict[str, list[float]]] = {name: {} for name in streams}
    comparing = sum(isinstance(stream, PairStream) for stream in streams.values())
    total = (len(rows) - comparing) * sum(map(len, sets.values()))
    total += comparing * sum(len(labelled.patches) for labelled in pairs.values())
    with progress("describe", total) as advance:
        for row, stream in streams.items():
            for name, one in sets.items():
                note = f"{row} {name}"
                if isinstance(stream, PairStream):
                    distances = -stream(one.blocks, pairs[name].patches, partial(advance, note=note))
                else:
                    distances = _pair_distances(
                        stream(_report_blocks(one.blocks(), advance, note)), pairs[name].patches
                    )
                values[row][name] = fpr95(distances, pairs[name].matching)
                curves[row][name] = false_positive_rates(distances, pairs[name].matching).tolist()
    trained = {row.name: trained_on(row) for row in rows}
    marked = frozenset(
        (row, name) for row in values for name in values[row] if any(one in trained[row] for one in _sets_named(name))
    )
    for row, figures in values.items():
        if foreign := [figure for name, figure in figures.items() if (row, name) not in marked]:
            figures[MEAN] = float(np.mean(foreign))
    known = {row: {"trained_on": list(names)} for row, names in trained.items()}
    return ScoreTable(
        "brown",
        (
            Measure(
                "fpr95",
                "false positive rate at 95 % recall, %, by test set",
                values,
                ".2%",
                lower_is_better=True,
                marked=marked,
                mark="trained on this very set",
            ),
        ),
        {name: {**about, **known[name]} for name, about in collect_facts(rows, streams).items()},
        {"pairs": {name: len(found.matching) for name, found in pairs.items()}, "false_positives_by_recall": curves},
        (
            _resized("Brown's", brown.MEASUREMENT_SIZE, streams),
            *(note for found in pairs.values() for note in describe_left_out(found.left_out)),
        ),
    )


def trained_on(row: Competitor) -> tuple[str, ...]:
    """Lists Brown's sets that the name or the metadata of a row's weights mention."""
    return _sets_named(row.describe_origin())


def _sets_named(text: str) -> tuple[str, ...]:
    return tuple(name for name, spelled in _SPELLED.items() if re.search(spelled, text.lower()))


def _pair_distances(described: Float16, pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    """(M,) L2 distances between the descriptors of (M, 2) pairs of rows."""
    distances = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), _PAIRS):
        first, second = (described[pairs[start : start + _PAIRS, k]].astype(np.float32) for k in (0, 1))
        distances[start : start + _PAIRS] = np.linalg.norm(first - second, axis=1)
    return distances


def evaluate_w1bs(
    folder: Path | str, rows: Sequence[Competitor] | None = None, resources: Resources | None = None
) -> ScoreTable:
    """Measures on W1BS the mean area under recall over 1 - precision of nearest neighbours, by nuisance.

    The last column is the mean over the nuisances with equal weights.

    Args:
        folder: folder with the sets, see `hardnet_sfm.evaluation.datasets.w1bs`.
        rows: descriptors. None means RootSIFT, and HardNet with its shipped weights.
        resources: threads and device to use.

    Raises:
        HardnetSfmError: a set is incomplete or damaged, or a descriptor cannot be made.
        UsageError: a row is a network that compares patches.
    """
    rows, resources = competitors(DESCRIPTORS, ()) if rows is None else rows, resources or Resources()
    if comparing := next((row.name for row in rows if row.compares), None):
        raise UsageError(
            f"w1bs finds the nearest of N patches for each of N patches. {comparing} would have to compare all N^2 "
            "pairs with its network, which are a million pairs of a thousand patches",
            "Measure it with hardnet-sfm evaluate brown | hpatches | homography | pairs.",
        )
    descriptors = make_descriptors(rows)
    columns, left_out = find_columns(Path(folder))
    values: dict[str, dict[str, float]] = {}
    details: dict[str, dict[str, float]] = {}
    with progress("w1bs", len(rows) * len(columns)) as advance:
        for row, descriptor in descriptors.items():
            describe, areas = PatchStream(descriptor, resources), {}
            for pair in columns:
                try:
                    first, second = pair.read()
                except HardnetSfmError as error:
                    left_out[f"{pair.nuisance}/{pair.name}"] = error
                    advance()
                    continue
                described = describe([first, second])
                areas[pair] = score_columns(described[: len(first)], described[len(first) :])
                advance(note=f"{row} {pair.nuisance} {pair.name}")
            check_any(areas, left_out)
            by_nuisance = {
                name: float(np.mean([area for pair, area in areas.items() if pair.nuisance == code]))
                for code, name in NUISANCES.items()
                if any(pair.nuisance == code for pair in areas)
            }
            values[row] = append_mean(by_nuisance)
            details[row] = {f"{pair.nuisance}/{pair.name}": area for pair, area in areas.items()}
    return ScoreTable(
        "w1bs",
        (Measure("mauc", "mAUC by nuisance", values),),
        collect_facts(rows, descriptors),
        {"pairs": details},
        (_resized("the", None, descriptors), *describe_left_out(left_out)),
    )


def evaluate_hpatches(
    folder: Path | str,
    rows: Sequence[Competitor] | None = None,
    resources: Resources | None = None,
    *,
    tasks: Path | str | None = None,
    split: str = "full",
) -> ScoreTable:
    """Measures mean average precision on HPatches: verification, matching and retrieval by the official task files.

    Networks that compare patches take part only in verification, which has a list of pairs. In the other tasks they
    would have to compare each patch with thousands.

    Lower bound of the cost: every patch of the split is described once, 16 for each of about 150 000 points of the 116
    sequences. A CPU that describes 9000 a second takes five minutes for each descriptor. Memory: 256 bytes a patch of
    128 dimensions, 640 MB; about 130 bytes for each line of the task files, 400 MB; and the patches of one column.
    A network that compares patches compares nine million pairs, which takes 40 minutes on two cores at 42 MFLOP a pair.
    It needs at most 4 KB for each patch of one level that is in a pair, 4 GB.

    Args:
        folder: folder `hpatches-release`, with a folder i_NAME or v_NAME for each sequence.
        rows: descriptors. None means RootSIFT, and HardNet with its shipped weights.
        resources: threads and device to use.
        tasks: folder of the task files and splits.json. None means `tasks` within `folder`.
        split: name of the split.

    Raises:
        HardnetSfmError: files are missing, damaged or contradict each other, or a descriptor cannot be made.
        UsageError: there is no such split.
    """
    rows, resources = competitors(DESCRIPTORS, ()) if rows is None else rows, resources or Resources()
    folder, streams = Path(folder), _streams(rows, resources)
    found = {sequence.name: sequence for sequence in hpatches.find_sequences(folder)}
    asked = hpatches.read_tasks(Path(tasks) if tasks else folder / "tasks", split, found.values())
    sequences = [found[name] for name in asked.sequences]
    verified: dict[str, _Verified] = {}
    matched: dict[str, dict[str, dict[hpatches.Level, float]]] = {}
    retrieved: dict[str, dict[tuple[hpatches.Level, int], float]] = {}
    for row, stream in streams.items():
        if isinstance(stream, PairStream):
            verified[row] = _verify_by_comparing(sequences, asked, stream, row)
            continue
        described = _describe_sequences(sequences, stream, row)
        verified[row] = _verify(described, asked, row)
        matched[row] = _match(described, asked, row)
        with progress("retrieve", len(asked.queries)) as advance:
            retrieved[row] = retrieve(described, asked, partial(advance, note=row))
    measures, details = _measure_tasks(verified, matched, retrieved)
    return ScoreTable(
        f"hpatches, split {split}",
        tuple(measures),
        collect_facts(rows, streams),
        {
            "sequences": list(asked.sequences),
            "points": sum(asked.counts),
            "verification_auc": {row: _by_task(scores, "area") for row, scores in verified.items()},
            **details,
        },
        (
            _resized("HPatches'", hpatches.MEASUREMENT_SIZE, streams),
            *_only_verified(rows),
            *describe_left_out(asked.left_out),
        ),
    )


def _measure_tasks(
    verified: Mapping[str, _Verified],
    matched: Mapping[str, Mapping[str, Mapping[hpatches.Level, float]]],
    retrieved: Mapping[str, Mapping[tuple[hpatches.Level, int], float]],
) -> tuple[list[Measure], dict[str, Any]]:
    """Makes the tables of the tasks, and the scores by sequence and pool for the JSON."""
    measures = [
        Measure(
            "verification_ap",
            "verification, mAP, %; negatives of the same or another sequence, five to a positive",
            {row: _by_task(scores, "average_precision") for row, scores in verified.items()},
            ".1%",
        )
    ]
    details: dict[str, Any] = {}
    if matched:
        details["matching_by_sequence"] = matched
        details["retrieval_by_pool"] = {
            row: {f"{level} {pool}": value for (level, pool), value in scores.items()}
            for row, scores in retrieved.items()
        }
        matching = {row: _by_kind(scores) for row, scores in matched.items()}
        retrieval = {row: _by_level(scores) for row, scores in retrieved.items()}
        measures += [
            Measure("matching_map", "matching, mAP, %; illumination and viewpoint", matching, ".1%"),
            Measure("retrieval_map", "retrieval, mAP, %; mean over pools of 100 to 20000", retrieval, ".1%"),
        ]
    return measures, details


def _verify(described: Float16, asked: hpatches.Tasks, row: str) -> _Verified:
    with progress("verify", len(hpatches.LEVELS) * len(asked.pairs)) as advance:
        return verify(lambda level: pair_distances(described, asked, level, partial(advance, note=row)), asked)


def _verify_by_comparing(
    sequences: Sequence[hpatches.PatchSequence], asked: hpatches.Tasks, stream: PairStream, row: str
) -> _Verified:
    photos, numbers = range(hpatches.PHOTOS + 1), _patch_numbers(asked)

    def columns(level: hpatches.Level) -> Iterator[NDArray[np.uint8]]:
        for sequence in sequences:
            for photo in photos:
                yield sequence.column(hpatches.COLUMNS[hpatches.find_column(level, photo)])

    with progress("verify", len(hpatches.LEVELS) * len(numbers)) as advance:
        return verify(lambda level: -stream(partial(columns, level), numbers, partial(advance, note=row)), asked)


def _patch_numbers(asked: hpatches.Tasks) -> NDArray[np.int64]:
    """(M, 2) patch numbers of the pairs to verify.

    Patches are numbered through the sequences, within a sequence through its photos, and within a photo through its
    points.
    """
    points, photos = np.moveaxis(asked.pairs, 2, 0)
    of = asked.sequence_of[points]
    starts = asked.starts[of]
    return np.asarray((hpatches.PHOTOS + 1) * starts + np.array(asked.counts)[of] * photos + points - starts)


def _match(described: Float16, asked: hpatches.Tasks, row: str) -> dict[str, dict[hpatches.Level, float]]:
    """Scores image matching by sequence and level."""
    matched = {}
    with progress("match", len(asked.sequences)) as advance:
        for name, start, count in zip(asked.sequences, asked.starts, asked.counts, strict=True):
            matched[name] = match_sequence(described[start : start + count])
            advance(note=f"{row} {name}")
    return matched


def _by_task(verified: _Verified, measure: str) -> dict[str, float]:
    """Arranges a verification measure by level and kind of negatives, and appends the mean."""
    return append_mean({f"{level} {kind}": getattr(score, measure) for (level, kind), score in verified.items()})


def _by_kind(matched: Mapping[str, Mapping[hpatches.Level, float]]) -> dict[str, float]:
    """Averages matching scores by kind of sequences and level.

    Both kinds have equal weight in the appended mean, as in the authors' table.
    """
    kinds = {"illum": "i_", "view": "v_"}
    of = {kind: [name for name in matched if name.startswith(start)] for kind, start in kinds.items()}
    return append_mean(
        {
            f"{kind} {level}": float(np.mean([matched[name][level] for name in names]))
            for kind, names in of.items()
            for level in hpatches.LEVELS
            if names
        }
    )


def _by_level(retrieved: Mapping[tuple[hpatches.Level, int], float]) -> dict[str, float]:
    """Averages retrieval scores over the pools by level, and appends the mean."""
    return append_mean({level: float(np.mean([retrieved[level, pool] for pool in POOLS])) for level in hpatches.LEVELS})


def _streams(rows: Iterable[Competitor], resources: Resources) -> dict[str, PatchStream | PairStream]:
    """Makes a stream that describes or compares patches for each row. Errors thus appear before the work begins."""
    return {
        row.name: PairStream(row.load(), resources) if row.compares else PatchStream(row.make(), resources)
        for row in rows
    }


def _describe_sequences(sequences: Sequence[hpatches.PatchSequence], describe: PatchStream, row: str) -> Float16:
    """Describes all patches of the sequences: (P, 16, D) descriptors by point and column."""
    points, across, start = sum(sequence.count for sequence in sequences), len(hpatches.COLUMNS), 0
    described = np.empty((points, across, describe.dimension), np.float16)
    with progress("describe", across * points) as advance:
        for sequence in sequences:
            columns = map(sequence.column, hpatches.COLUMNS)
            of_columns = describe(_report_blocks(columns, advance, f"{row} {sequence.name}"))
            described[start : start + sequence.count] = of_columns.reshape(across, sequence.count, -1).swapaxes(0, 1)
            start += sequence.count
    return described


def _report_blocks(blocks: Iterable[NDArray[np.uint8]], advance: Advance, note: str) -> Iterator[NDArray[np.uint8]]:
    """Passes blocks through, and reports the number of patches in a block when the next block is requested."""
    for block in blocks:
        yield block
        advance(len(block), note)


def _only_verified(rows: Iterable[Competitor]) -> list[str]:
    """Names the rows that take no part in matching and retrieval."""
    names = ", ".join(row.name for row in rows if row.compares)
    return [f"{names}: verification alone, as other tasks need distances of descriptors"] if names else []


def _resized(whose: str, size: float | None, streams: Mapping[str, Spanning]) -> str:
    """Explains that patches are resized whole although a descriptor has another span on photos."""
    on_photos = ", ".join(f"{name} {one.measurement_size:g}" for name, one in streams.items())
    span = "" if size is None else f", of {size:g} sigmas across,"
    return f"{whose} patches{span} are resized whole, whatever span a descriptor has on photos ({on_photos} sigmas)"
