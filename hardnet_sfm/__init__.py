"""Learned local features as a working tool for structure from motion and image retrieval.

    >>> import hardnet_sfm
    >>> model = hardnet_sfm.reconstruct("images/")  # doctest: +SKIP

Each stage is a function of files to files: `extract`, `pair`, `match`, `map_photos`; `reconstruct` chains them, and
`write_report` draws a page of what they made.
`vocabulary` and `index` make photos searchable; `index_photos` chains them, and `Index` searches.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hardnet_sfm.benchmark.landmarks import evaluate_landmarks as evaluate_landmarks
    from hardnet_sfm.benchmark.patches import evaluate_brown as evaluate_brown
    from hardnet_sfm.benchmark.patches import evaluate_hpatches as evaluate_hpatches
    from hardnet_sfm.benchmark.patches import evaluate_w1bs as evaluate_w1bs
    from hardnet_sfm.benchmark.photos import evaluate_homographies as evaluate_homographies
    from hardnet_sfm.benchmark.photos import evaluate_pairs as evaluate_pairs
    from hardnet_sfm.benchmark.rows import competitors as competitors
    from hardnet_sfm.colmap.model import Model as Model
    from hardnet_sfm.demonstration import demo as demo
    from hardnet_sfm.errors import HardnetSfmError as HardnetSfmError
    from hardnet_sfm.errors import UsageError as UsageError
    from hardnet_sfm.extraction import extract as extract
    from hardnet_sfm.features.stage import ExtractOptions as ExtractOptions
    from hardnet_sfm.keypoints import Keypoints as Keypoints
    from hardnet_sfm.keypoints import Matches as Matches
    from hardnet_sfm.keypoints import RankedImage as RankedImage
    from hardnet_sfm.matching.pairs import PairOptions as PairOptions
    from hardnet_sfm.matching.pairs import pair as pair
    from hardnet_sfm.matching.stage import MatchOptions as MatchOptions
    from hardnet_sfm.matching.stage import match as match
    from hardnet_sfm.pipeline import reconstruct as reconstruct
    from hardnet_sfm.reconstruction.export import export as export
    from hardnet_sfm.reconstruction.options import MapOptions as MapOptions
    from hardnet_sfm.reconstruction.stage import map_photos as map_photos
    from hardnet_sfm.report.info import info as info
    from hardnet_sfm.report.montage import montage as montage
    from hardnet_sfm.report.write import write_report as write_report
    from hardnet_sfm.resources import Resources as Resources
    from hardnet_sfm.retrieval.options import METHODS as METHODS
    from hardnet_sfm.retrieval.options import IndexOptions as IndexOptions
    from hardnet_sfm.retrieval.options import VocabularyOptions as VocabularyOptions
    from hardnet_sfm.retrieval.stage import index as index
    from hardnet_sfm.retrieval.vocabulary import vocabulary as vocabulary
    from hardnet_sfm.retrieve import Index as Index
    from hardnet_sfm.retrieve import index_photos as index_photos
    from hardnet_sfm.retry import RetryOptions as RetryOptions
    from hardnet_sfm.stores import FeatureStore as FeatureStore
    from hardnet_sfm.stores import MatchStore as MatchStore
    from hardnet_sfm.view_synthesis import ViewSynthesisOptions as ViewSynthesisOptions
    from hardnet_sfm.view_synthesis import match_photos as match_photos
    from hardnet_sfm.workspace import Workspace as Workspace

# Imported when first asked for: torch and pycolmap take seconds, and `hardnet-sfm --help` needs neither.
_HOMES = {
    "competitors": "benchmark.rows",
    "evaluate_brown": "benchmark.patches",
    "evaluate_homographies": "benchmark.photos",
    "evaluate_hpatches": "benchmark.patches",
    "evaluate_landmarks": "benchmark.landmarks",
    "evaluate_pairs": "benchmark.photos",
    "evaluate_w1bs": "benchmark.patches",
    "Model": "colmap.model",
    "demo": "demonstration",
    "HardnetSfmError": "errors",
    "UsageError": "errors",
    "ExtractOptions": "features.stage",
    "extract": "extraction",
    "Keypoints": "keypoints",
    "Matches": "keypoints",
    "RankedImage": "keypoints",
    "PairOptions": "matching.pairs",
    "pair": "matching.pairs",
    "MatchOptions": "matching.stage",
    "match": "matching.stage",
    "reconstruct": "pipeline",
    "export": "reconstruction.export",
    "MapOptions": "reconstruction.options",
    "map_photos": "reconstruction.stage",
    "info": "report.info",
    "montage": "report.montage",
    "write_report": "report.write",
    "Resources": "resources",
    "RetryOptions": "retry",
    "METHODS": "retrieval.options",
    "IndexOptions": "retrieval.options",
    "VocabularyOptions": "retrieval.options",
    "index": "retrieval.stage",
    "vocabulary": "retrieval.vocabulary",
    "Index": "retrieve",
    "index_photos": "retrieve",
    "FeatureStore": "stores",
    "MatchStore": "stores",
    "ViewSynthesisOptions": "view_synthesis",
    "match_photos": "view_synthesis",
    "Workspace": "workspace",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hardnet_sfm' has no attribute {name!r}")
    return getattr(import_module(f"hardnet_sfm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
