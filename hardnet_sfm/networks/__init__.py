"""Networks: torch modules and their registry. `hardnet_sfm.files.weight_files`, which stands above, reads weights."""
