"""Registry entries of the networks in the literature, see `hardnet_sfm.networks.architectures`."""

from __future__ import annotations

from torch import nn

from hardnet_sfm.literature.convex import ConvexOptions, learn_convexopt
from hardnet_sfm.literature.convexopt import ConvexOpt
from hardnet_sfm.literature.deepcompare import (
    PseudoSiamese,
    Siamese,
    SiameseL2,
    SiameseTwoStream,
    SiameseTwoStreamL2,
    TwoChannel,
    TwoChannelTwoStream,
)
from hardnet_sfm.literature.deepdesc import DeepDesc
from hardnet_sfm.literature.l2net import CentreSurroundL2Net
from hardnet_sfm.literature.matchnet import MatchNet
from hardnet_sfm.literature.scorer import NetworkScorer
from hardnet_sfm.literature.tfeat import TFeat
from hardnet_sfm.networks.architectures import Architecture, Learner, layers_of_l2net
from hardnet_sfm.networks.hardnet import HardNet

_TANH = nn.init.calculate_gain("tanh")
_MEAN = "mean 0 of each patch"

L2NET = layers_of_l2net("l2net", "L2-Net", HardNet, 32, 128, "l2net")
L2NET_CS = layers_of_l2net("l2net-cs", "CS L2-Net", CentreSurroundL2Net, 64, 256, "l2net", ("surround", "centre"))
TFEAT = Architecture("tfeat", "TFeat", TFeat, 32, "l2", 128, "triplet-swap", gain=_TANH, unit_length=False)
CONVEXOPT = Architecture(
    "convexopt",
    "ConvexOpt",
    lambda: ConvexOpt(80, 128),
    64,
    "l2",
    128,
    "global-margin",
    "gradients by the 0.8 quantile of their magnitudes",
    reduced_precision=False,
    shaped_as=ConvexOpt.shaped_as,
    learner=Learner(ConvexOptions, learn_convexopt),
)
DEEPDESC = Architecture(
    "deepdesc", "DeepDesc", DeepDesc, 64, "l2", 128, "mined-contrastive", gain=_TANH, unit_length=False
)
MATCHNET = Architecture(
    "matchnet",
    "MatchNet",
    MatchNet,
    64,
    "metric network",
    512,
    "cross-entropy",
    "(grey - 128) / 160",
    scorer=NetworkScorer,
)
DEEPCOMPARE_2CH = Architecture(
    "deepcompare-2ch", "DeepCompare 2ch", TwoChannel, 64, "pair network", 0, "hinge", _MEAN, scorer=NetworkScorer
)
DEEPCOMPARE_2CH2STREAM = Architecture(
    "deepcompare-2ch2stream",
    "DeepCompare 2ch-2stream",
    TwoChannelTwoStream,
    64,
    "pair network",
    0,
    "hinge",
    _MEAN,
    towers=("surround", "centre"),
    scorer=NetworkScorer,
)
DEEPCOMPARE_SIAM = Architecture(
    "deepcompare-siam", "DeepCompare siam", Siamese, 64, "metric network", 256, "hinge", _MEAN, scorer=NetworkScorer
)
DEEPCOMPARE_PSEUDO_SIAM = Architecture(
    "deepcompare-pseudo-siam",
    "DeepCompare pseudo-siam",
    PseudoSiamese,
    64,
    "metric network",
    256,
    "hinge",
    _MEAN,
    towers=("first", "second"),
    scorer=NetworkScorer,
)
DEEPCOMPARE_SIAM2STREAM = Architecture(
    "deepcompare-siam2stream",
    "DeepCompare siam-2stream",
    SiameseTwoStream,
    64,
    "metric network",
    512,
    "hinge",
    _MEAN,
    towers=("centre", "surround"),
    scorer=NetworkScorer,
)
DEEPCOMPARE_SIAM_L2 = Architecture(
    "deepcompare-siam-l2",
    "DeepCompare siam-l2",
    SiameseL2,
    64,
    "l2",
    256,
    "contrastive",
    _MEAN,
    part_of="deepcompare-siam",
)
DEEPCOMPARE_SIAM2STREAM_L2 = Architecture(
    "deepcompare-siam2stream-l2",
    "DeepCompare siam-2stream-l2",
    SiameseTwoStreamL2,
    64,
    "l2",
    512,
    "contrastive",
    _MEAN,
    towers=("centre", "surround"),
    part_of="deepcompare-siam2stream",
)
