"""Readers of the data sets of the literature, one file for each layout. They alone in `evaluation` know files."""
