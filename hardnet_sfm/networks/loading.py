"""Networks with the weights of a file."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.weight_files import Weights, not_finite, read_weights, recommended_ratio
from hardnet_sfm.networks.architectures import ARCHITECTURES, LoadedNetwork, PairScorer, part_of_whole, recognised
from hardnet_sfm.registry import names_of

CUSTOMARY_SIZE = 12.0  # sigmas across a patch, since Brown's data set


def architecture_of(weights: Weights) -> str:
    """What a file says it is of, else what its tensors are recognised as.

    Raises:
        HardnetSfmError: neither gives the name of an architecture here.
    """
    name = weights.metadata.get("architecture") or recognised(weights.tensors)
    if name is None or name not in ARCHITECTURES:
        what = f"weights of {name}, no network" if name else "weights of no network"
        raise HardnetSfmError(f"{weights.path}: {what} that is known here", f"Known are: {names_of(ARCHITECTURES)}.")
    return name


def load_network(path: Path, name: str | None = None) -> LoadedNetwork:
    """Reads a network from a weights file.

    Args:
        path: .safetensors file.
        name: of the architecture that it has to be of, or that is part of what it is of, as "deepcompare-siam-l2" is
            of "deepcompare-siam"; any where None.

    Raises:
        HardnetSfmError: the file is missing or damaged, its weights are of another or of no known architecture, or its
            metadata make no sense.
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
            "Say when saving the weights how many sigmas their patches are across.",
        ) from error
    return LoadedNetwork(network.eval(), architecture, measurement_size, weights.sha256, recommended_ratio(weights))


def load_into(network: nn.Module, weights: Weights, architecture: str) -> None:
    """Puts weights into a network, every tensor or none; of a network that it is part of, the part.

    Raises:
        HardnetSfmError: they are for another architecture, tensors are missing, unknown or of another shape, or not all
            numbers in them are finite.
    """
    wrong = not_finite(weights.tensors)
    if wrong:
        raise HardnetSfmError(
            f"{weights.path}: not all of {wrong[0]} are finite numbers", "Its training failed, or the file is damaged."
        )
    of, tensors = ARCHITECTURES[architecture], weights.tensors
    named = weights.metadata.get("architecture", architecture)
    if weights.metadata.get("architecture", of.part_of) == of.part_of:
        part = part_of_whole(of, tensors)
        named, tensors = (named, tensors) if part is None else (architecture, part)
    expected = network.state_dict()
    # Counters of batches seen matter to nobody after training, and some files leave them out.
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
    """Raises UsageError where a network describes patches and compares none."""
    if loaded.architecture.scorer is None:
        name, title = loaded.architecture.name, loaded.architecture.title
        raise UsageError(
            f"{title} describes patches and compares none",
            f"Use it in the first place: hardnet-sfm extract --descriptor {name} --weights FILE.safetensors.",
        )


def scorer_of(loaded: LoadedNetwork, device: str) -> PairScorer:
    """What scores pairs of patches with a network that compares them.

    Raises:
        UsageError: the network is one that describes patches.
    """
    check_compares(loaded)
    assert loaded.architecture.scorer is not None
    return loaded.architecture.scorer(loaded, device)
