"""The command `weights`: list, show, check and convert weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.terminal import output


def convert(
    source: Path, target: Path | None = None, architecture: str | None = None, measurement_size: float | None = None
) -> Path:
    """Writes the state dict of a PyTorch checkpoint as a safetensors file.

    The checkpoint is read by PyTorch's reader for tensors only, which runs no code that is in the file. Tensors get the
    names that the network has for them here, see `hardnet_sfm.networks.architectures.under_names_of`.

    Args:
        source: .pth file with a state dict, bare or under "state_dict" as the authors of HardNet have it.
        target: .safetensors file to make; by default beside the source, where nothing of that name is there yet.
        architecture: what the weights are of, or what is to be taken of them, as the towers of "deepcompare-siam" for
            "deepcompare-siam-l2". Where None, they are recognised by their names and shapes.
        measurement_size: sigmas of the keypoint across the patches they were trained with; 12 by default.

    Returns:
        The file that was made.

    Raises:
        HardnetSfmError: the file is missing, damaged, holds something else, or the disk is full.
        UsageError: there is no such architecture or size, the source is a safetensors file or the target, or no target
            is given and there is a file of its name.
    """
    from torch import Tensor

    from hardnet_sfm.files.weight_files import load_tensors, write_weights
    from hardnet_sfm.networks.architectures import ARCHITECTURES, recognised, under_names_of
    from hardnet_sfm.networks.loading import CUSTOMARY_SIZE
    from hardnet_sfm.registry import names_of

    if not source.is_file():
        raise HardnetSfmError(f"no such file: {source}", "Give the path of a PyTorch checkpoint.")
    if source.suffix == ".safetensors":
        raise UsageError(f"{source}: safetensors already, not a PyTorch checkpoint", "Give a .pth file.")
    size = CUSTOMARY_SIZE if measurement_size is None else measurement_size
    if not 0 < size < float("inf"):
        raise UsageError(f"--measurement-size must be above 0 and finite: {size}")
    if target is None:
        target = source.with_suffix(".safetensors")
        if target.exists():
            raise UsageError(f"{target} is there already", "Give --output to say which file to write.")
    if target.resolve() == source.resolve():
        raise UsageError(f"{source} would be written over by what is made of it", "Give another name for --output.")
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
            f"{source}: weights of no network that is known here",
            f"Known are: {names_of(ARCHITECTURES)}. "
            "If a network has two towers, its tensors have to be named after them.",
        )
    of = ARCHITECTURES.find(name)
    named = under_names_of(of, tensors)
    if named is None:
        hint = f"Name them after their towers, {' and '.join(of.towers)}." if of.towers else ""
        raise HardnetSfmError(
            f"{source}: not weights of {of.title}", f"Leave out --architecture to have it found. {hint}".strip()
        )
    write_weights(target, named, {**of.metadata(), "measurement_size": str(size), "source": source.name})
    return target


@dataclass(frozen=True)
class WeightsCommand:
    """Look at, verify or convert weights."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm weights list",
        "hardnet-sfm weights convert HardNet++.pth -o hardnet++.safetensors",
    )

    action: Annotated[Literal["list", "show", "verify", "convert"], Positional]
    """list: what comes with the package. show: what a file says of itself. verify: hold it against its card. convert: a
    PyTorch checkpoint to safetensors."""
    name: Annotated[str | None, Positional, arg(metavar="NAME")] = None
    """A shipped name or a file."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """convert: .safetensors file to make. Default: beside the checkpoint."""
    architecture: str | None = None
    """convert: the network that they are of, as `train --network` has it, or that is to be taken of them, as
    deepcompare-siam-l2 is of deepcompare-siam. Default: recognised by names and shapes."""
    measurement_size: float | None = None
    """convert: sigmas of the keypoint across the patches they were trained with. Default: 12."""
    debug: bool = False
    """Show where in the program an error came from."""

    def run(self) -> None:
        from hardnet_sfm.files.weight_files import find_weights, read_weights, shipped_names, verify

        if (self.name is None) != (self.action == "list"):
            raise UsageError(
                f"weights {self.action} takes {'no name' if self.name else 'a name or a file'}",
                "`hardnet-sfm weights list` has the names of those that come with the package.",
            )
        for option in ("output", "architecture", "measurement_size"):
            if getattr(self, option) is not None and self.action != "convert":
                flag = option.replace("_", "-")
                raise UsageError(
                    f"--{flag} has no effect with weights {self.action}", "Only weights convert writes a file."
                )
        if self.action == "list":
            for name in shipped_names():
                output.print(f"{name}  {escape(str(find_weights(name)))}")
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
        for name, value in sorted(facts.items()):  # a safetensors file has them in no order
            output.print(f"[bold]{escape(name)}[/]  {escape(value)}")
