"""Pairs of photos and their putative matches."""
