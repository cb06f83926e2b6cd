"""Evaluates descriptors and methods on Paris6k, starting from the archives of its authors.

    python pipelines/paris6k.py PARIS OXFORD --words 65536

PARIS has paris_1.tgz, paris_2.tgz and paris_120310.tgz. OXFORD has oxbuild_images.tgz, from which the vocabularies are
learned. Either may be an unpacked data set with images/ (or jpg/) and gt/ (or lab/). The 20 photos that are damaged in
the archives are reported and left out. With gnd_rparis6k.pkl in PARIS, `--revisited` uses the protocol of Radenovic et
al., CVPR 2018. Run it again to continue.
"""

from __future__ import annotations

from archives import OXFORD, PARIS
from oxford5k import main

if __name__ == "__main__":
    main(PARIS, OXFORD)
