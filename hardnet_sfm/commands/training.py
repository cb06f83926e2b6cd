"""The verbs of training: mine and warp make patches, train makes weights of them, weights looks at those."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.commands.common import Images, output, print_skipped
from hardnet_sfm.errors import UsageError
from hardnet_sfm.resources import Resources
from hardnet_sfm.training.observations import MineOptions
from hardnet_sfm.training.options import TrainOptions
from hardnet_sfm.training.warps import WarpOptions


@dataclass(frozen=True)
class Mine:
    """Cut training patches from a model and its photos."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm mine hardnet-sfm-out/ --images images/ -o patches.h5",
        "hardnet-sfm mine model/ --images images/ -o patches.h5 --sheet sheet.png",
    )

    model: Annotated[Path, Positional, arg(metavar="MODEL")]
    """Workspace that `reconstruct` made, or folder of any COLMAP model."""
    images: Path
    """Folder of the model's photos."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """patches.h5 to make."""
    sheet: Path | None = None
    """PNG to draw some of the patches on, a row a point."""
    as_brown: Path | None = None
    """Folder to make with the same patches in the layout of Brown's PhotoTour, for other trainers."""
    debug: bool = False
    """Show where in the program an error came from."""
    mine: MineOptions = field(default_factory=MineOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.features.detectors import DetectorOptions, make_detector
        from hardnet_sfm.training.mine import mine

        detect = make_detector("opencv-dog", DetectorOptions(8192, 0.02 / 3, 10, upright=False, affine_shape=False))
        report = mine(self.model, self.images, self.output, self.mine, self.resources, detect=detect)
        output.print(f"{report.patches} patches of {report.points} points in {report.photos} photos")
        for name, count in report.dropped.items():
            output.print(f"  {100 * count / report.observations:5.2f} % dropped: {name}")
        print_skipped(report.skipped)
        _print_patches(self.output, self.sheet, self.as_brown)


@dataclass(frozen=True)
class Warp:
    """Make training patches from photos alone, by warping them."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm warp photos/ -o warps.h5",
        "hardnet-sfm warp photos/ -o warps.h5 --views 8 --sheet sheet.png",
    )

    images: Images
    """Folder of photos, searched recursively, never written to. They need not show the same thing."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """patches.h5 to make."""
    sheet: Path | None = None
    """PNG to draw some of the patches on, a row a point."""
    debug: bool = False
    """Show where in the program an error came from."""
    warp: WarpOptions = field(default_factory=WarpOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.training.warps import warp

        report = warp(self.images, self.output, self.warp, self.resources)
        output.print(f"{report.patches} patches of {report.points} points in {report.photos} photos")
        print_skipped(report.skipped)
        _print_patches(self.output, self.sheet, None)


@dataclass(frozen=True)
class Train:
    """Learn a network from patches (needs hardnet-sfm[train])."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm train patches.h5 warps.h5 -o my.safetensors --minutes 60",
        "hardnet-sfm train patches.h5 -o my.safetensors --validation held-out.h5 --resume",
        "hardnet-sfm train patches.h5 -o tfeat.safetensors --network tfeat --steps 5000",
    )
    interrupted: ClassVar[str] = (
        "Interrupted. Go on with the same command, and --resume where the folder beside the output has a last.ckpt or "
        "journal."
    )

    patches: Annotated[tuple[Path, ...], Positional, arg(metavar="PATCHES")]
    """patches.h5 files, as `mine` and `warp` make them."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """.safetensors file to make."""
    validation: tuple[Path, ...] = ()
    """patches.h5 files of scenes that are not trained on, to measure with."""
    shares: tuple[float, ...] | None = None
    """Share of each of PATCHES in a batch. Default: as the root of its number of points."""
    debug: bool = False
    """Show where in the program an error came from."""
    train: TrainOptions = field(default_factory=TrainOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.training.stage import train

        report = train(
            self.patches, self.output, self.train, self.resources, validation=self.validation, shares=self.shares
        )
        measures = "".join(f", {name} {value:.4f}" for name, value in report.measures.items())
        made = "" if report.computed else "; up to date"
        output.print(
            f"{escape(str(self.output))}: {report.steps} steps in {report.minutes:.1f} minutes{measures}{made}"
        )


@dataclass(frozen=True)
class Weights:
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
        from hardnet_sfm.weights import convert, find_weights, read_weights, shipped_names, verify

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


def _print_patches(patches: Path, sheet: Path | None, as_brown: Path | None) -> None:
    """Draws and writes what was asked for beside the patches, and says where all of it is."""
    output.print(escape(str(patches)))
    if sheet is not None:
        from hardnet_sfm.report.sheets import sheet as draw

        draw(patches, sheet)
        output.print(escape(str(sheet)))
    if as_brown is not None:
        from hardnet_sfm.training.brown import write_brown
        from hardnet_sfm.training.patches import read_patches

        write_brown(read_patches(patches), as_brown)
        output.print(escape(str(as_brown)))
