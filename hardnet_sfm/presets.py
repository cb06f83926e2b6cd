"""Sets of options for `reconstruct`, by what one has: little time, much time, photos from the internet, a video."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hardnet_sfm.errors import check_choice
from hardnet_sfm.features.stage import ExtractOptions
from hardnet_sfm.matching.pairs import PairOptions
from hardnet_sfm.matching.stage import MatchOptions
from hardnet_sfm.reconstruction.options import MapOptions
from hardnet_sfm.retry import RetryOptions
from hardnet_sfm.view_synthesis import ViewSynthesisOptions

PresetName = Literal["fast", "default", "thorough", "internet", "video"]


@dataclass(frozen=True)
class Preset:
    """Options for each stage of `reconstruct`."""

    extract: ExtractOptions = field(default_factory=ExtractOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    match: MatchOptions = field(default_factory=MatchOptions)
    views: ViewSynthesisOptions = field(default_factory=ViewSynthesisOptions)
    map: MapOptions = field(default_factory=MapOptions)
    retry: RetryOptions = field(default_factory=RetryOptions)


PRESETS: dict[PresetName, Preset] = {
    "fast": Preset(extract=ExtractOptions(max_keypoints=3000, max_image_size=1280)),
    "default": Preset(),
    "thorough": Preset(
        extract=ExtractOptions(max_keypoints=20000),
        map=MapOptions(guided_matching=True),
        retry=RetryOptions(retry_views=True),
    ),
    "internet": Preset(pair=PairOptions(pairing="retrieval"), map=MapOptions(camera_mode="per-image")),
    "video": Preset(pair=PairOptions(pairing="sequential"), map=MapOptions(camera_mode="single")),
}


def preset(name: PresetName = "default") -> Preset:
    """The options of a preset.

    Raises:
        UsageError: there is no such preset.

    Examples:
        >>> preset("video").pair.pairing
        'sequential'
    """
    check_choice("preset", name, PresetName)
    return PRESETS[name]
