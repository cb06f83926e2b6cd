"""Finds photos that show the same thing: vocabularies, indexes of visual words with binary signatures, and ranking."""
