"""Torch modules of networks and their registry. `hardnet_sfm.files.weight_files` reads their weights."""
