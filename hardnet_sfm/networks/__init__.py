"""Networks: torch modules and the registry of them; files are read by `hardnet_sfm.weights`, which stands above."""
