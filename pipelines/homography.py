"""Descriptors beside each other on photos that are related by homographies: MMA and mAP.

    python pipelines/homography.py HOMOGRAPHY --weights my.safetensors

The same as `hardnet-sfm evaluate homography`: all descriptors are computed at the same keypoints, those of COLMAP's
difference of Gaussians on photos of full size, and the same matcher, mutual nearest neighbours. COLMAP's own RootSIFT
always takes part.
"""

from __future__ import annotations

import tyro
from tyro.conf import OmitArgPrefixes

from hardnet_sfm.commands.common import errors_said
from hardnet_sfm.commands.evaluate import Homography
from hardnet_sfm.commands.flags import flag_rules


def main() -> None:
    options = tyro.cli(Homography, config=(OmitArgPrefixes,), registry=flag_rules())
    with errors_said(options.table.debug, interrupted="Interrupted. Nothing was written."):
        options.run()


if __name__ == "__main__":
    main()
