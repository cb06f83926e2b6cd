"""The rows of a benchmark table: descriptors given by name, and weights given by file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.features.extraction import ExtractOptions, KeypointOptions
from hardnet_sfm.files.photo_files import sha256_of
from hardnet_sfm.files.workspace import CARD, read_json

if TYPE_CHECKING:  # torch takes seconds to import; `--help` does without
    from hardnet_sfm.features.descriptors import Descriptor
    from hardnet_sfm.network_weights import Weights
    from hardnet_sfm.networks.architectures import LoadedNetwork

DESCRIPTORS = ("rootsift", "hardnet")


@dataclass(frozen=True)
class Competitor:
    """A row of the table.

    Attributes:
        name: name in the table.
        descriptor: name of the descriptor, as in `ExtractOptions`.
        weights: file of the descriptor's weights; None if it needs none.
        weights_sha256: sha256 of the weights; empty if the descriptor needs none.
        compares: True for a network that compares patches and does not describe them. Not all benchmarks can measure
            such a network.
    """

    name: str
    descriptor: str
    weights: Path | None
    weights_sha256: str
    compares: bool = False

    @property
    def folder(self) -> str:
        """Name of the folder for features, vocabularies and indexes; it differs for other weights of the same name."""
        return f"{self.name}-{self.weights_sha256[:8]}" if self.weights else self.name

    def extract_options(self, keypoints: KeypointOptions) -> ExtractOptions:
        return ExtractOptions(**asdict(keypoints), descriptor=self.descriptor, weights=self.weights)

    def make(self) -> Descriptor:
        """Makes the descriptor.

        Raises:
            HardnetSfmError: the weights cannot be used.
            UsageError: there is no descriptor of that name.
        """
        from hardnet_sfm.features.descriptors import make_descriptor

        return make_descriptor(self.descriptor, self.weights)

    def load(self) -> LoadedNetwork:
        """Loads the network of a row that has weights.

        Raises:
            HardnetSfmError: the weights cannot be used.
        """
        from hardnet_sfm.networks.loading import load_network

        assert self.weights is not None
        return load_network(self.weights, self.descriptor)

    def stated(self) -> str:
        """Joins all that the name and metadata of the weights say about their origin; empty without weights."""
        from hardnet_sfm.files.weight_files import read_weights

        if self.weights is None:
            return ""
        metadata = read_weights(self.weights).metadata
        return " ".join([self.weights.stem, *(metadata.get(name, "") for name in ("data", "source", "init"))])


def competitors(descriptors: Sequence[str], weights: Sequence[str]) -> list[Competitor]:
    """Makes the rows: the named descriptors, then a row for each file of weights that no named descriptor uses.

    A descriptor with shipped weights uses these. Any other descriptor uses the given weights that fit it, with a row
    for each file, named after the file. A descriptor that is part of a larger network can use the weights of that
    network. The name of the row then says so: `deepcompare-siam-l2` with deepcompare-siam.safetensors gives the row
    "deepcompare-siam-l2".

    Args:
        descriptors: names that `ExtractOptions.descriptor` accepts.
        weights: names of shipped weights, or files. Their network comes from their metadata, or from their tensors.

    Raises:
        HardnetSfmError: there are no such weights.
        UsageError: two rows have the same name, or there are no rows.
    """
    from hardnet_sfm.files.weight_files import find_weights, read_weights
    from hardnet_sfm.networks.architectures import ARCHITECTURES
    from hardnet_sfm.networks.loading import SHIPPED, architecture_of

    given = [read_weights(find_weights(one)) for one in weights]
    of = {one.path: architecture_of(one) for one in given}

    def with_weights(descriptor: str, one: Weights) -> Competitor:
        name = one.path.stem + descriptor.removeprefix(of[one.path])
        return Competitor(name, descriptor, one.path, one.sha256, ARCHITECTURES[descriptor].metric != "l2")

    found: list[Competitor] = []
    taken: set[Path] = set()
    for descriptor in descriptors:
        if descriptor in SHIPPED:
            path = find_weights(SHIPPED[descriptor])
            found.append(Competitor(path.stem, descriptor, path, sha256_of(path)))
            continue
        network = ARCHITECTURES.get(descriptor)
        own = [one for one in given if network and of[one.path] in (network.name, network.part_of)]
        found += [with_weights(descriptor, one) for one in own] or [Competitor(descriptor, descriptor, None, "")]
        taken |= {one.path for one in own}
    found += [with_weights(of[one.path], one) for one in given if one.path not in taken]
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two rows of the table would be called {twice[0]}", "Rename one of the files.")
    if not found:
        raise UsageError("nothing to evaluate", "Give a --descriptor or --weights.")
    return found


def made(rows: Iterable[Competitor]) -> dict[str, Descriptor]:
    """Makes the descriptors of all rows, by name. Errors in any of them thus appear before the work begins."""
    return {row.name: row.make() for row in rows}


def find_vocabularies(paths: Sequence[Path], rows: Sequence[Competitor]) -> dict[str, Path]:
    """Finds the given vocabularies by the name of the row they fit. Returns none if a folder of photos is given."""
    homes = [next((home for home in (path, path / "vocabulary") if (home / CARD).is_file()), None) for path in paths]
    if len(homes) == 1 and homes[0] is None:
        return {}
    found: dict[str, Path] = {}
    for path, home in zip(paths, homes, strict=True):
        if home is None:
            raise HardnetSfmError(
                f"no vocabulary at {path}", "Give one for each descriptor, or one folder of photos to learn them from."
            )
        card = read_json(home / CARD)
        made_of = card.get("descriptor"), card.get("weights_sha256")
        name = next((row.name for row in rows if (row.descriptor, row.weights_sha256) == made_of), None)
        if name is None or name in found:
            what = f"of {made_of[0]}, which has no row" if name is None else f"of {name}, which has one already"
            raise UsageError(f"{path}: a vocabulary {what}", "Give one for each --descriptor and --weights.")
        found[name] = home
    if missing := [row.name for row in rows if row.name not in found]:
        raise UsageError(f"no vocabulary of {missing[0]} is given", "Give one for each, or photos to learn them from.")
    return found


class Spanning(Protocol):
    """Something that uses patches of a certain size in pixels and a certain width in sigmas of the keypoint."""

    @property
    def patch_size(self) -> int: ...

    @property
    def measurement_size(self) -> float: ...


def facts(rows: Iterable[Competitor], looking: Mapping[str, Spanning]) -> dict[str, dict[str, Any]]:
    """Collects the facts that a table keeps about each of its rows."""
    return {
        row.name: {
            "descriptor": row.descriptor,
            "weights_sha256": row.weights_sha256,
            "patch_size": looking[row.name].patch_size,
            "measurement_size": looking[row.name].measurement_size,
        }
        for row in rows
    }
