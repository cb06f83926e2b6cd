"""Matches pairs of photos. Its matches are putative: they are not verified yet."""
