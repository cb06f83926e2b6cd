"""Extracts keypoints and descriptors from photos."""
