"""Descriptors and experiments of published papers, as a plug-in. The product works without this folder.

The entry points `hardnet_sfm.networks` and `hardnet_sfm.losses` add its networks and losses, as for any other package.
No other module of the package imports this folder.
"""
