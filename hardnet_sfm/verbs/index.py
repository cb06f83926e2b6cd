"""The command `index` makes a folder of photos searchable, and updates the index when photos are added or removed."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape
from tyro.conf import arg

from hardnet_sfm.errors import UsageError
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.index_files import Manifest
from hardnet_sfm.files.ledger import Ledger
from hardnet_sfm.files.ownership import claim
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.vocabulary_files import read_card
from hardnet_sfm.files.workspace import DEFAULT, MANIFEST, Workspace, locked
from hardnet_sfm.inverted_lists import MOST_PHOTOS
from hardnet_sfm.progress import console, progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.stages import OnStage, ignore
from hardnet_sfm.terminal import Common, Images, Prune, print_result
from hardnet_sfm.verbs.extract import extract_photos
from hardnet_sfm.verbs.vocabulary import VocabularyOptions, default_words, vocabulary

if TYPE_CHECKING:  # faiss and numba take seconds to import
    from hardnet_sfm.photo_index import Index
    from hardnet_sfm.retrieval.segments import IndexedPhoto
    from hardnet_sfm.retrieval.visual_words import Vocabulary


# Words are learned again if there would be this many times as many.
_OUTGROWN = 4
# Rough figures to estimate the time: words that a descriptor is compared with at most, and comparisons of a thread.
_COMPARED = 6000
_COMPARISONS_A_SECOND = 2e7


@dataclass(frozen=True)
class IndexOptions:
    """How photos are added to an index. This does not change what a query finds."""

    checkpoint: int = 256
    """Photos between two checkpoints. A killed run resumes from its last checkpoint. Lower it to repeat less work."""

    def check(self) -> None:
        """Raises UsageError if a value is invalid."""
        if not 1 <= self.checkpoint <= MOST_PHOTOS:
            raise UsageError(f"--checkpoint must be from 1 to {MOST_PHOTOS}")


@dataclass(frozen=True)
class IndexResult:
    """Result of the stage.

    Attributes:
        photos: number of photos in the index.
        features: number of features in the index.
        added, removed: number of photos added and removed; a changed photo counts as both.
        bytes_a_feature: size of all index files except the vocabulary, divided by the number of features.
    """

    photos: int
    features: int
    added: int
    removed: int
    bytes_a_feature: float

    def summary(self) -> str:
        """One line about the contents of the index and the changes of this run."""
        size = f"{self.bytes_a_feature:.2f} bytes a feature"
        changed = f"added {self.added}, removed {self.removed}" if self.added or self.removed else "up to date"
        return f"{self.features} features of {self.photos} photos, {size}; {changed}"


def index(
    features: Path | str,
    vocabulary: Path | str,
    output: Path | str,
    options: IndexOptions | None = None,
    resources: Resources | None = None,
    *,
    names: Collection[str] | None = None,
) -> IndexResult:
    """Makes an index hold exactly the photos of a store of features, or a selection of them.

    The stage adds photos that are new or whose features changed, and removes photos that are gone. All other photos
    stay as they are. If the vocabulary or the descriptor changed, it adds all photos again. Readers see the old index
    until the new one is complete. A killed run loses only the photos since its last checkpoint.

    Args:
        features: store with the features of the photos.
        vocabulary: folder of the vocabulary, or a workspace that has one.
        output: folder of the index to create or to update.
        options: options of the index.
        resources: threads and device to use.
        names: names of the photos to index. None means all photos of the store.

    Raises:
        HardnetSfmError: the features and the vocabulary come from different descriptors or weights, the index is
            damaged, or the disk is full.
        UsageError: an option is invalid.
    """
    import faiss

    from hardnet_sfm.index_folder import IndexBuilder, open_vocabulary

    options, resources = options or IndexOptions(), resources or Resources()
    options.check()
    features, output = Path(features), Path(output)
    words = open_vocabulary(Path(vocabulary))
    with locked(output.parent), FeatureStore(features) as store:
        words.check_fits(store.header["options"], str(features))
        builder = IndexBuilder(output, words, store.header["images"], store.header["options"])
        wanted = {name: mark for name, mark in store.fingerprints().items() if names is None or name in names}
        removed = builder.keep_only(wanted)
        start = time.perf_counter()
        due = [name for name in store.names() if name in wanted and name not in builder.there]
        if due:
            faiss.omp_set_num_threads(resources.threads)
            with progress("index", len(wanted), len(wanted) - len(due)) as advance:
                for photo in _indexed(store, words, due):
                    builder.add(photo, options.checkpoint)
                    advance(note=photo.name)
        photos, stored, size = builder.finish()
        Ledger(output.parent).note_seconds("index", time.perf_counter() - start, len(due), len(wanted))
    return IndexResult(photos, stored, len(due), removed, size / max(1, stored))


def _indexed(store: FeatureStore, vocabulary: Vocabulary, names: list[str]) -> Iterator[IndexedPhoto]:
    from hardnet_sfm.retrieval.segments import IndexedPhoto, pack_geometry

    prints = store.fingerprints()
    for name in names:
        descriptors, size = store.descriptors(name), store.size(name)
        words = vocabulary.assign(descriptors)[:, 0]
        geometry = pack_geometry(store.keypoints(name), size)
        yield IndexedPhoto(name, prints[name], size, words, vocabulary.signatures(descriptors, words), geometry)


def index_photos(
    images: Path | str,
    workspace: Path | str = DEFAULT,
    *,
    vocabulary_folder: Path | str | None = None,
    extract_options: ExtractOptions | None = None,
    vocabulary_options: VocabularyOptions | None = None,
    index_options: IndexOptions | None = None,
    resources: Resources | None = None,
    on_stage: OnStage = ignore,
    prune: bool = False,
) -> Index:
    """Extracts features, learns a vocabulary if none is given, and indexes the photos.

    A second call does only what is missing.

    Args:
        images: folder of photos, searched recursively and never written to.
        workspace: folder for all outputs.
        vocabulary_folder: folder of an existing vocabulary, or another workspace that has one.
        extract_options, vocabulary_options, index_options: options of the three stages.
        resources: threads and device to use.
        on_stage: called with the name and the result of each stage as it ends.
        prune: drop photos that are gone, even if these are a tenth of the photos or more.

    Raises:
        HardnetSfmError: the folder has no photos, many photos are gone and `prune` is not set, the vocabulary is for
            another descriptor, or the photos have too few descriptors to learn a vocabulary.
        UsageError: the options contradict each other.
    """
    from hardnet_sfm.photo_index import Index

    place, resources = Workspace(Path(workspace)), resources or Resources()
    for options in (vocabulary_options, index_options):
        if options is not None:
            options.check()
    outputs = place.vocabulary.name, place.index.name
    on_stage("extract", extract_photos(Path(images), place, extract_options, resources, later=outputs, prune=prune))
    update_index(
        place,
        vocabulary_folder=vocabulary_folder,
        vocabulary_options=vocabulary_options,
        index_options=index_options,
        resources=resources,
        on_stage=on_stage,
    )
    used = extract_options or Ledger(place.root).recall("extract", ExtractOptions) or ExtractOptions()
    return Index.open(place.index, weights=used.weights, resources=resources)


def update_index(
    place: Workspace,
    *,
    vocabulary_folder: Path | str | None = None,
    vocabulary_options: VocabularyOptions | None = None,
    index_options: IndexOptions | None = None,
    resources: Resources | None = None,
    on_stage: OnStage = ignore,
) -> None:
    """Brings a workspace's index up to date with its features.

    A given vocabulary is used first. Otherwise the index keeps its own vocabulary if that fits the descriptor and no
    `vocabulary_options` are set. Otherwise a new one is learned from the features. Added or removed photos therefore
    do not change the visual words, unless the collection has outgrown them: if a new vocabulary would have at least
    four times as many words, it is learned. Growing step by step costs at most a third more than learning once.
    """
    claim(place.root, place.vocabulary.name, place.index.name)
    with locked(place.root):
        words: Path | None = None if vocabulary_folder is None else Path(vocabulary_folder)
        outgrown = False
        if vocabulary_options == VocabularyOptions():
            vocabulary_options = None  # those that the workspace remembers
        if words is None and vocabulary_options is None:
            words = _fitting_vocabulary(place)
            if words is not None and (features := _outgrown(place, words)):
                _say_it_is_outgrown(words, features, resources or Resources())
                words, outgrown = None, True
        if words is None:
            learned = vocabulary(place.features, place.vocabulary, vocabulary_options, resources, announce=not outgrown)
            on_stage("vocabulary", learned)
            words = place.vocabulary
        on_stage("index", index(place.features, words, place.index, index_options, resources))


def _fitting_vocabulary(place: Workspace) -> Path | None:
    """Returns the vocabulary of the workspace's index if the features still come from the same descriptor."""
    if not (place.index / MANIFEST).is_file():
        return None
    manifest = Manifest.read(place.index / MANIFEST)
    with FeatureStore(place.features) as store:
        same = all(
            manifest.options.get(name) == store.header["options"].get(name) for name in ("descriptor", "weights_sha256")
        )
    return place.index / manifest.vocabulary_folder if same else None


def _outgrown(place: Workspace, vocabulary_folder: Path) -> int:
    """Returns the number of features of a collection that has outgrown the vocabulary that was learned from it, else 0.

    It returns 0 for a vocabulary of other photos, and for one whose number of words was chosen by hand.
    """
    card = read_card(vocabulary_folder)
    with FeatureStore(place.features) as store:
        learned_from = card.get("made_of", {}).get("features", {})
        ours = card.get("data") == store.header["images"] or learned_from.items() & store.fingerprints().items()
        features = sum(store.counts().values())
    same = not ours or card.get("words_chosen") or default_words(features) < _OUTGROWN * card["words"]
    return 0 if same else features


def _say_it_is_outgrown(vocabulary_folder: Path, features: int, resources: Resources) -> None:
    words, more = read_card(vocabulary_folder)["words"], default_words(features)
    comparisons = VocabularyOptions().iterations * min(features, 32 * more) + features
    seconds = comparisons * min(more, _COMPARED) / (_COMPARISONS_A_SECOND * resources.threads)
    duration = f"{round(seconds / 60)} minutes" if seconds > 90 else f"{max(2, round(seconds))} seconds"
    console.print(
        f"The collection has outgrown the {words} visual words of its index. {more} new ones are learned and all "
        f"photos are indexed again, in about {duration}. To keep the old ones, press Ctrl-C and give --vocabulary "
        f"{escape(str(vocabulary_folder))}.",
    )


@dataclass(frozen=True)
class IndexCommand:
    """Options of `hardnet-sfm index`.

    Examples:
        hardnet-sfm index photos/
        hardnet-sfm index photos/ --vocabulary other-city/
    """

    images: Images
    """Folder of photos, searched recursively, never written to. Run again after adding or deleting files in that
    folder."""
    common: Common = field(default_factory=Common)
    vocabulary: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Vocabulary to use: a folder that `vocabulary` made, or a workspace that has one. Default: the vocabulary of the
    existing index, or a new one."""
    prune: Prune = False
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    learn: VocabularyOptions = field(default_factory=VocabularyOptions)
    index: IndexOptions = field(default_factory=IndexOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        if self.vocabulary is not None and self.learn != VocabularyOptions():
            raise UsageError(
                "options of a new vocabulary have no effect with --vocabulary",
                "Leave out --vocabulary to learn a new one, or leave out those options to use it.",
            )
        index_photos(
            self.images,
            self.common.workspace,
            vocabulary_folder=self.vocabulary,
            extract_options=self.extract,
            vocabulary_options=self.learn,
            index_options=self.index,
            resources=self.resources,
            on_stage=print_result,
            prune=self.prune,
        )
