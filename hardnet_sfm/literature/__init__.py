"""The descriptors and experiments of the papers, as a plug-in: deleting this folder leaves a working product.

Networks and losses come in by the entry points `hardnet_sfm.networks` and `hardnet_sfm.losses`, as those of any package
would. Nothing outside imports this folder.
"""
