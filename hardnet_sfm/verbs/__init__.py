"""Each file implements one verb of `--help`: its options, its result, its function and its command line."""
