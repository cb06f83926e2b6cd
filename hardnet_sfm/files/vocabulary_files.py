"""The folder of a vocabulary: `card.json`, a file with the numbers, and the centroids of an interrupted run.

The card states what the vocabulary was made from, and names the file. The file's name contains its checksum. So a
vocabulary is replaced by replacing its card.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file, save

from hardnet_sfm.arrays import Float32
from hardnet_sfm.errors import HardnetSfmError, file_error
from hardnet_sfm.files.photo_files import sha256_of
from hardnet_sfm.files.workspace import CARD, digest, prepare_folder, read_json, replacing, write_json

FORMAT = "hardnet-sfm vocabulary"
VERSION = 1
# Centroids of a run that has not finished.
UNFINISHED = "unfinished.safetensors"
# The projection stays in 32 bits.
_TENSORS = {"centroids": np.float16, "thresholds": np.float16, "projection": np.float32}


def read_vocabulary(folder: Path) -> tuple[dict[str, Any], dict[str, Float32]]:
    """Reads the card and the numbers of a vocabulary, see `hardnet_sfm.retrieval.visual_words.Vocabulary`.

    Args:
        folder: folder of the vocabulary, or a workspace that contains one.

    Raises:
        HardnetSfmError: the vocabulary is missing, damaged or of another version.
    """
    folder = folder if (folder / CARD).is_file() else folder / "vocabulary"
    if not (folder / CARD).is_file():
        raise HardnetSfmError(f"no vocabulary at {folder}", "Run `hardnet-sfm vocabulary IMAGES` first.")
    card = read_card(folder)
    if card.get("format") != FORMAT or card.get("version") != VERSION:
        raise HardnetSfmError(
            f"{folder}: not a vocabulary of hardnet-sfm (version {VERSION})",
            "Make it again with `hardnet-sfm vocabulary IMAGES`.",
        )
    path = folder / str(card.get("file"))
    try:
        if sha256_of(path) != card["sha256"]:
            raise ValueError(f"its sha256 differs from that in {CARD}")
        tensors = load_file(path)
        return card, {name: tensors[name].astype(np.float32) for name in _TENSORS}
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        remedy = "Make the vocabulary again with `hardnet-sfm vocabulary`."
        raise file_error(path, error, "the words of this vocabulary", remedy) from error


def read_card(folder: Path) -> dict[str, Any]:
    """Reads the card of a vocabulary, and checks the types of what is in it.

    Raises:
        HardnetSfmError: the card is missing or damaged.
    """
    card = read_json(folder / CARD)
    made_of = card.get("made_of", {})
    sound = isinstance(made_of, dict) and isinstance(made_of.get("features", {}), dict)
    numbers = [card.get(name, 0) for name in ("words", "recall", "objective")]
    numbers += [made_of.get("descriptors", 0)] if sound else []
    if not (sound and all(type(number) in (int, float) for number in numbers)):
        remedy = "Move the vocabulary away and make it again with `hardnet-sfm vocabulary`."
        raise file_error(folder / CARD, ValueError("a number or an object has another type"), "the card", remedy)
    return card


def write_vocabulary(folder: Path, card: Mapping[str, Any], numbers: Mapping[str, Float32]) -> dict[str, Any]:
    """Writes a vocabulary, complete or not at all. An earlier one in the folder stays until this one is complete.

    Args:
        folder: folder of the vocabulary; made if missing.
        card: facts about its origin.
        numbers: `centroids`, `projection` and `thresholds`.

    Returns:
        The card as it was written, with the checksum of the numbers.

    Raises:
        HardnetSfmError: the disk is full or cannot be written.
    """
    prepare_folder(folder)
    content = save({name: np.ascontiguousarray(numbers[name], kind) for name, kind in _TENSORS.items()})
    mark = sha256(content).hexdigest()
    target = folder / f"words-{mark[:8]}.safetensors"
    written = {**card, "format": FORMAT, "version": VERSION, "file": target.name, "sha256": mark}
    with replacing(target) as beside:
        beside.write_bytes(content)
    write_json(folder / CARD, written)
    for old in folder.glob("words-*.safetensors"):
        if old != target:
            old.unlink()
    (folder / UNFINISHED).unlink(missing_ok=True)
    return written


class CentroidFile:
    """Keeps the centroids of an unfinished k-means in the folder of its vocabulary.

    Args:
        folder: folder of the vocabulary; made if missing.
        made_of: everything that determines the vocabulary. Centroids of others are not used.

    Raises:
        HardnetSfmError: the folder cannot be made.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, Any]) -> None:
        prepare_folder(folder)
        self._path, self._mark = folder / UNFINISHED, digest("k-means", made_of)

    def load(self) -> tuple[int, Float32] | None:
        """Returns the number of finished iterations and the (K, D) centroids after them, if there are any."""
        try:
            with safetensors.safe_open(self._path, "numpy") as file:
                facts = file.metadata() or {}
                if facts.get("made_of") == self._mark:
                    return int(facts["iterations"]), file.get_tensor("centroids")
        except (OSError, KeyError, ValueError, safetensors.SafetensorError):
            pass  # missing, or damaged by a full disk: k-means begins again
        return None

    def save(self, iterations: int, centroids: Float32) -> None:
        """Keeps the (K, D) centroids after a number of iterations.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        facts = {"made_of": self._mark, "iterations": str(iterations)}
        with replacing(self._path) as beside:
            beside.write_bytes(save({"centroids": np.ascontiguousarray(centroids, np.float32)}, facts))
