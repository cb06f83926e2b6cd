"""Makes a COLMAP model from features and matches."""
