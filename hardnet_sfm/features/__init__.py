"""Photos to keypoints and descriptors."""
