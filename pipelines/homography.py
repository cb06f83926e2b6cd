"""Compares descriptors on photos that are related by homographies: MMA and mAP.

    python pipelines/homography.py HOMOGRAPHY --weights my.safetensors

This is the same as `hardnet-sfm evaluate homography`. All descriptors are computed at the same keypoints, which
COLMAP's difference of Gaussians detects on photos of full size. All use the same matcher, mutual nearest neighbours.
COLMAP's own RootSIFT always takes part.
"""

from __future__ import annotations

import tyro
from tyro.conf import OmitArgPrefixes

from hardnet_sfm.flags import flag_rules
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.verbs.evaluate import Homography


def main() -> None:
    options = tyro.cli(Homography, config=(OmitArgPrefixes,), registry=flag_rules())
    with report_errors(options.table.debug, interrupted="Interrupted. Nothing was written."):
        options.run()


if __name__ == "__main__":
    main()
