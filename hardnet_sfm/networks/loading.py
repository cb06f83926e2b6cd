"""Loads networks with the weights of a file."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.weight_files import read_weights, shipped
from hardnet_sfm.network_weights import Weights, not_finite, recommended_ratio
from hardnet_sfm.networks.architectures import (
    ARCHITECTURES,
    Architecture,
    LoadedNetwork,
    PairScorer,
    part_of_whole,
    recognised,
)

# Weights in the package whose name differs from that of their network.
SHIPPED = {"hardnet": "hardnet-sfm", "hardnet-fast": "hardnet-sfm-fast"}
CUSTOMARY_SIZE = 12.0  # sigmas across a patch, usual since Brown's data set


def architecture_of(weights: Weights) -> str:
    """Returns the architecture's name from a file's metadata, or else from the shapes of its tensors.

    Raises:
        HardnetSfmError: neither gives the name of a known architecture.
    """
    name = weights.metadata.get("architecture") or recognised(weights.tensors)
    if name is None or name not in ARCHITECTURES:
        what = f"weights of {name}, an unknown network" if name else "weights of an unknown network"
        raise HardnetSfmError(f"{weights.path}: {what}", f"Known networks: {', '.join(ARCHITECTURES)}.")
    return name


def load_network(path: Path, name: str | None = None) -> LoadedNetwork:
    """Reads a network from a weights file.

    Args:
        path: path of a .safetensors file.
        name: name of the required architecture; None for any. It may also be part of the file's architecture, as
            "deepcompare-siam-l2" is part of "deepcompare-siam".

    Raises:
        HardnetSfmError: the file is missing or damaged, its weights belong to another or an unknown architecture, or
            its metadata are invalid.
    """
    weights = read_weights(path)
    architecture = ARCHITECTURES.find(name or architecture_of(weights))
    network = architecture.build(tensors=weights.tensors)
    load_into(network, weights, architecture.name)
    try:
        measurement_size = float(weights.metadata.get("measurement_size", CUSTOMARY_SIZE))
        if not 0 < measurement_size < float("inf"):
            raise ValueError(f"not a positive number: {measurement_size}")
    except ValueError as error:
        raise HardnetSfmError(
            f"{path}: metadata measurement_size: {error}",
            "Save the weights again with the side of their patches, in sigmas.",
        ) from error
    return LoadedNetwork(network.eval(), architecture, measurement_size, weights.sha256, recommended_ratio(weights))


def load_network_or_shipped(path: Path | None, architecture: Architecture) -> LoadedNetwork:
    """Reads a network from a weights file, or from the weights in the package if the path is None.

    Raises:
        HardnetSfmError: see `load_network`; or the package has no weights of this architecture.
    """
    name = architecture.name
    path = path or shipped(SHIPPED.get(name, name))
    if path is None:
        raise HardnetSfmError(
            f"this version comes without trained {architecture.title} weights",
            f"Train weights with `hardnet-sfm train --network {name}`, or convert those of the authors with "
            "`hardnet-sfm weights convert`. Give them with --weights FILE.safetensors. Or use --descriptor rootsift.",
        )
    return load_network(path, name)


def load_into(network: nn.Module, weights: Weights, architecture: str) -> None:
    """Puts weights into a network, either every tensor or none.

    If the weights belong to a larger network that contains this one, only this part is used.

    Raises:
        HardnetSfmError: the weights belong to another architecture; tensors are missing, unknown or of another shape;
            or a number in them is not finite.
    """
    wrong = not_finite(weights.tensors)
    if wrong:
        raise HardnetSfmError(
            f"{weights.path}: not all numbers of {wrong[0]} are finite", "Its training failed, or the file is damaged."
        )
    of, tensors = ARCHITECTURES[architecture], weights.tensors
    named = weights.metadata.get("architecture", architecture)
    if weights.metadata.get("architecture", of.part_of) == of.part_of:
        part = part_of_whole(of, tensors)
        named, tensors = (named, tensors) if part is None else (architecture, part)
    expected = network.state_dict()
    # Counters of batches have no use after training, and some files leave them out.
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(tensors) - counters)
    unknown = sorted(set(tensors) - set(expected))
    both = expected.keys() & tensors.keys()
    reshaped = [name for name in both if expected[name].shape != tensors[name].shape]
    if named != architecture or missing or unknown or reshaped:
        problems = (("missing", missing), ("unknown", unknown), ("of another shape", sorted(reshaped)))
        details = "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in problems if names)
        raise HardnetSfmError(
            f"{weights.path}: weights of {named if named != architecture else 'another network'}, not of {architecture}"
            + (f" ({details})" if details else ""),
            "Choose the --descriptor or --network that these weights belong to.",
        )
    network.load_state_dict(tensors, strict=False)


def check_compares(loaded: LoadedNetwork) -> None:
    """Raises UsageError if a network describes patches instead of comparing them."""
    if loaded.architecture.scorer is None:
        name, title = loaded.architecture.name, loaded.architecture.title
        raise UsageError(
            f"{title} describes patches and cannot compare them",
            f"Use it to describe keypoints: hardnet-sfm extract --descriptor {name} --weights FILE.safetensors.",
        )


def scorer_of(loaded: LoadedNetwork, device: str) -> PairScorer:
    """Makes the scorer for pairs of patches of a network that compares them.

    Raises:
        UsageError: the network describes patches.
    """
    check_compares(loaded)
    assert loaded.architecture.scorer is not None
    return loaded.architecture.scorer(loaded, device)
