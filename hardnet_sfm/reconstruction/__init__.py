"""Features and matches to a COLMAP model."""
