"""Networks: torch modules and nothing else; files are read by `hardnet_sfm.weights`."""
