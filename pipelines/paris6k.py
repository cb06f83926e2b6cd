"""Paris6k from the archives of its authors to the table of descriptors and methods.

    python pipelines/paris6k.py PARIS OXFORD --words 65536

PARIS has paris_1.tgz, paris_2.tgz and paris_120310.tgz, OXFORD has oxbuild_images.tgz, of which the vocabularies are
learned; either may be a folder that is unpacked already, with images/ (or jpg/) and gt/ (or lab/). The 20 photos that
are damaged in the archives are reported and left out. With gnd_rparis6k.pkl in PARIS, `--revisited` takes the protocol
of Radenovic et al., CVPR 2018. Run it again to continue.
"""

from __future__ import annotations

from oxford5k import main

from hardnet_sfm.evaluation.archives import OXFORD, PARIS

if __name__ == "__main__":
    main(PARIS, OXFORD)
