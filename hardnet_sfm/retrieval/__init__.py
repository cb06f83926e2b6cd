"""Which photos show the same thing: vocabularies, indexes of visual words with binary signatures, ranking."""
