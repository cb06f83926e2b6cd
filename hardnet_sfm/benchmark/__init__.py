"""The chains behind `evaluate`: what the wings make, described and matched, against the ground truth of a data set.

They stand above the wings as `pipeline` does: evaluation knows nothing but distances and rankings, features and
matching nothing of ground truth.
"""
