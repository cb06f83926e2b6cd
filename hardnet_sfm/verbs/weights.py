"""The command `weights` lists, shows, checks and converts weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.terminal import output


def convert(
    source: Path, target: Path | None = None, architecture: str | None = None, measurement_size: float | None = None
) -> Path:
    """Writes the state dict of a PyTorch checkpoint as a safetensors file.

    PyTorch reads the checkpoint in its tensors-only mode, which runs no code from the file. The tensors are renamed to
    the names in this package's network, see `hardnet_sfm.networks.architectures.under_names_of`.

    Args:
        source: .pth file with a state dict, at the top level or under "state_dict" as in the HardNet authors' files.
        target: .safetensors file to create. It may replace an earlier conversion, but no other file. The default is
            next to the source, provided that it does not exist yet.
        architecture: network that the weights belong to. It may also be a part of that network: "deepcompare-siam-l2"
            takes the towers of "deepcompare-siam". If None, the names and shapes of the tensors decide.
        measurement_size: width of the training patches in sigmas of the keypoint; 12 by default.

    Returns:
        The created file.

    Raises:
        HardnetSfmError: the file is missing, is damaged or holds something else, or the disk is full.
        UsageError: there is no such architecture or size, the source is a safetensors file, the source and the target
            are the same file, or the target exists.
    """
    from torch import Tensor

    from hardnet_sfm.files.weight_files import load_tensors, write_weights
    from hardnet_sfm.network_weights import not_finite
    from hardnet_sfm.networks.architectures import ARCHITECTURES, recognised, under_names_of
    from hardnet_sfm.networks.loading import CUSTOMARY_SIZE

    if not source.is_file():
        raise HardnetSfmError(f"no such file: {source}", "Give the path of a PyTorch checkpoint.")
    if source.suffix == ".safetensors":
        raise UsageError(f"{source}: safetensors already, not a PyTorch checkpoint", "Give a .pth file.")
    size = CUSTOMARY_SIZE if measurement_size is None else measurement_size
    if not 0 < size < float("inf"):
        raise UsageError(f"--measurement-size must be above 0 and finite: {size}")
    given, target = target, target or source.with_suffix(".safetensors")
    if target.resolve() == source.resolve():
        raise UsageError(f"{source} would be overwritten by its conversion", "Give another name for --output.")
    if target.exists() and (given is None or not _is_conversion(target)):
        raise UsageError(f"{target} is there already", "Give another name for --output, or move it elsewhere.")
    loaded = load_tensors(source, "Other content could run code, so it is not read.")
    tensors = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    named_tensors = isinstance(tensors, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    )
    if not named_tensors or not tensors:
        raise HardnetSfmError(f"{source}: no state dict in it", "A state dict maps names of parameters to tensors.")
    name = architecture or recognised(tensors)
    if name is None:
        raise HardnetSfmError(
            f"{source}: weights of an unknown network",
            f"Known networks: {', '.join(ARCHITECTURES)}. "
            "If a network has two towers, its tensors have to be named after them.",
        )
    of = ARCHITECTURES.find(name)
    named = under_names_of(of, tensors)
    if named is None:
        hint = f"Name them after their towers, {' and '.join(of.towers)}." if of.towers else ""
        raise HardnetSfmError(
            f"{source}: not weights of {of.title}", f"Leave out --architecture to have it recognised. {hint}".strip()
        )
    if wrong := not_finite(named):
        raise HardnetSfmError(
            f"{source}: damaged, or its training diverged: not all numbers of {wrong[0]} are finite",
            "Copy it again. If you trained it, take an earlier checkpoint, or train with a lower learning rate.",
        )
    write_weights(target, named, {**of.metadata(), "measurement_size": str(size), "source": source.name})
    return target


def _is_conversion(path: Path) -> bool:
    """Says whether a file has weights that `convert` wrote, not `train`."""
    from hardnet_sfm.files.weight_files import read_weights

    try:
        metadata = read_weights(path).metadata
    except HardnetSfmError:
        return False
    return "source" in metadata and "fingerprint" not in metadata


@dataclass(frozen=True)
class WeightsCommand:
    """Options of `hardnet-sfm weights`.

    Examples:
        hardnet-sfm weights list
        hardnet-sfm weights convert HardNet++.pth -o hardnet++.safetensors
    """

    action: Annotated[Literal["list", "show", "verify", "convert"], Positional]
    """list: the weights that come with the package. show: the metadata of a file. verify: compare a file with its card.
    convert: turn a PyTorch checkpoint into safetensors."""
    name: Annotated[str | None, Positional, arg(metavar="NAME")] = None
    """Name of shipped weights, or a file."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """convert: .safetensors file to write. Default: next to the checkpoint."""
    architecture: str | None = None
    """convert: network of the weights, as in `train --network`. It may also be a part to take from them, such as
    deepcompare-siam-l2 from deepcompare-siam. Default: recognised by names and shapes."""
    measurement_size: float | None = None
    """convert: side of the patches that the weights were trained with, in sigmas of the keypoint. Default: 12."""
    debug: bool = False
    """Show where in the program an error came from."""

    def run(self) -> None:
        from hardnet_sfm.files.weight_files import find_weights, read_weights, shipped_names, verify
        from hardnet_sfm.networks.loading import architecture_of

        if (self.name is None) != (self.action == "list"):
            raise UsageError(
                f"weights {self.action} takes {'no name' if self.name else 'a name or a file'}",
                "`hardnet-sfm weights list` lists the weights that come with the package.",
            )
        for option in ("output", "architecture", "measurement_size"):
            if getattr(self, option) is not None and self.action != "convert":
                flag = option.replace("_", "-")
                raise UsageError(
                    f"--{flag} has no effect with weights {self.action}", "Only weights convert writes a file."
                )
        if self.action == "list":
            for name in shipped_names():
                path = find_weights(name)
                output.print(
                    f"{name}  weights of --descriptor {architecture_of(read_weights(path))}  {escape(str(path))}"
                )
            if not shipped_names():
                output.print("none come with this version")
            return
        assert self.name is not None
        if self.action == "convert":
            output.print(escape(str(convert(Path(self.name), self.output, self.architecture, self.measurement_size))))
            return
        path = find_weights(self.name)
        if self.action == "verify":
            output.print(f"{escape(str(path))}: as its card says, sha256 {verify(path)}")
            return
        weights = read_weights(path)
        numbers = sum(tensor.numel() for tensor in weights.tensors.values())
        facts = {**weights.metadata, "numbers": str(numbers), "sha256": weights.sha256}
        for name, value in sorted(facts.items()):  # a safetensors file does not order its metadata
            output.print(f"[bold]{escape(name)}[/]  {escape(value)}")
