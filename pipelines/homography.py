"""Descriptors beside each other on photos that are related by homographies: MMA and mAP.

    python pipelines/homography.py HOMOGRAPHY --weights my.safetensors

The same as `hardnet-sfm evaluate homography`: all descriptors are computed at the same keypoints, those of COLMAP's
difference of Gaussians on photos of full size, and the same matcher, mutual nearest neighbours. COLMAP's own RootSIFT
always takes part.
"""

from __future__ import annotations

import sys

import tyro
from rich.markup import escape
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes

from hardnet_sfm.commands.evaluate import Homography
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.progress import console as errors


def main() -> None:
    options = tyro.cli(Homography, config=(OmitArgPrefixes, FlagCreatePairsOff))
    try:
        options.run()
    except HardnetSfmError as error:
        if options.table.debug:
            raise
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
