"""Training of descriptors on patches from SfM models and from warped photos."""
