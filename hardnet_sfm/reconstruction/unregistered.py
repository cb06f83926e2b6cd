"""Reasons why photos are not part of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hardnet_sfm.keypoints import PhotoPair


def reasons_unregistered(
    keypoints: Mapping[str, int], verified: Mapping[PhotoPair, int], models: Sequence[Sequence[str]]
) -> dict[str, str]:
    """Gives for every photo that is not in the largest model the reason.

    Args:
        keypoints: number of keypoints of every photo.
        verified: number of inliers of every verified pair.
        models: names of the photos in each model, the largest first.
    """
    import networkx

    largest = set(models[0]) if models else set()
    graph = networkx.Graph(verified.keys())
    graph.add_nodes_from(keypoints)
    within_reach = {name for group in networkx.connected_components(graph) if group & largest for name in group}
    reasons: dict[str, str] = {}
    for name, count in keypoints.items():
        elsewhere = [number for number, names in enumerate(models) if number and name in names]
        if name in largest:
            continue
        if elsewhere:
            reasons[name] = f"in another model, sparse/{elsewhere[0]}"
        elif count == 0:
            reasons[name] = "no features"
        elif not graph[name]:
            reasons[name] = "no verified pairs"
        elif not models:
            reasons[name] = "no pair of photos to start a model from"
        elif name not in within_reach:
            reasons[name] = "not connected to the model"
        else:
            reasons[name] = "connected, but too few points in common with the model"
    return reasons
