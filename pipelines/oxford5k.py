"""Evaluates descriptors and methods on Oxford5k, starting from the archives of its authors.

    python pipelines/oxford5k.py OXFORD PARIS --words 65536

OXFORD has oxbuild_images.tgz and gt_files_170407.tgz. PARIS has paris_1.tgz and paris_2.tgz, from which the
vocabularies are learned. Either may be an unpacked data set with images/ (or jpg/) and gt/ (or lab/). With
gnd_roxford5k.pkl in OXFORD, `--revisited` uses the protocol of Radenovic et al., CVPR 2018. Run it again to continue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from archives import OXFORD, PARIS, City, unpack_data_set
from tyro.conf import OmitArgPrefixes, Positional, arg

from hardnet_sfm.flags import flag_rules
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.verbs.evaluate import LandmarkOptions


@dataclass(frozen=True)
class Options:
    """From the archives of a data set to the table of descriptors and methods."""

    folder: Annotated[Path, Positional, arg(metavar="DATASET")]
    """Archives of the data set, or the data set unpacked."""
    other: Annotated[Path, Positional, arg(metavar="OTHER")]
    """Archives of the other city, or its data set unpacked: vocabularies are learned from its photos."""
    revisited: bool = False
    """Take the revisited ground truth, gnd_NAME.pkl beside the archives."""
    table: LandmarkOptions = field(default_factory=lambda: LandmarkOptions(workspace=Path("buildings-out")))


def main(city: City, other: City) -> None:
    options = tyro.cli(Options, config=(OmitArgPrefixes,), registry=flag_rules())
    workspace = options.table.workspace
    with report_errors(options.table.debug):
        folder = unpack_data_set(city, options.folder, workspace, truth=not options.revisited)
        vocabulary = unpack_data_set(other, options.other, workspace, truth=False)
        options.table.compare(city.revisited if options.revisited else city.name, folder, [vocabulary])


if __name__ == "__main__":
    main(OXFORD, PARIS)
