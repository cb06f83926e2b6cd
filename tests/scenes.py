"""Scenes for the tests besides the square: a walk towards it, three equal houses, a tower with facades that look alike.

The twins are the same square with three equal houses: their sizes and the textures of all their walls are equal. The
tower has the same texture on its four facades, except for a sign on each, and a full circle of cameras around it.
Photos of different facades match each other as if they showed the same one.
"""

from __future__ import annotations

import numpy as np

from hardnet_sfm import scene
from hardnet_sfm.arrays import Float64
from hardnet_sfm.scene import Layout

# Houses of equal size and texture, and the boxes of the square between them and in front of them.
TWINS = (
    (-9.5, 8.0, 6.0, 5.0, 6.5, 20.0),
    (-1.0, 11.5, 6.0, 5.0, 6.5, -6.0),
    (8.5, 8.5, 6.0, 5.0, 6.5, -28.0),
)
AMONG_TWINS = scene._BOXES[3:]
TOWER = (0.0, 0.0, 6.0, 6.0, 8.0, 10.0)
# Boxes around the tower. Each has its own texture and is low enough to leave the facades visible.
AROUND_TOWER = (
    (5.5, -3.0, 1.6, 1.2, 1.1, 17.0),
    (-2.2, 6.2, 1.2, 2.0, 0.9, 52.0),
    (-6.0, -4.4, 1.0, 1.0, 1.4, 33.0),
)
SIGN = (1.6, 1.2)  # width and height in metres; each facade has its own sign
SIGN_GAP = 0.03  # metres between a facade and its sign
RING_TARGET = np.array([0.0, 0.0, 3.4])  # metres; the point that the cameras around the tower look at


def build_twins(rng: np.random.Generator) -> list[scene._Face]:
    """Builds the ground, three equal houses, and boxes between them and in front of them."""
    faces = [scene._make_ground(rng)]
    texture_seed = int(rng.integers(2**32))
    for house in TWINS:
        faces += scene._make_boxes([house], np.random.default_rng(texture_seed))
    return faces + scene._make_boxes(AMONG_TWINS, rng)


def build_tower(rng: np.random.Generator) -> list[scene._Face]:
    """Builds the ground, a tower with four facades of one texture and a sign on each, and low boxes around it."""
    faces = [scene._make_ground(rng)]
    roof, *facades = scene._box_quads(*TOWER)
    faces.append(scene._make_face(roof, scene._WALL_TEXEL, rng))
    texture_seed = int(rng.integers(2**32))
    for facade in facades:
        faces.append(scene._make_face(facade, scene._WALL_TEXEL, np.random.default_rng(texture_seed)))
        faces.append(scene._make_face(sign_on(facade, rng.uniform(0.1, 0.9, 2)), scene._WALL_TEXEL, rng))
    return faces + scene._make_boxes(AROUND_TOWER, rng)


def sign_on(facade: scene._Quad, place: Float64) -> scene._Quad:
    """Places a sign in front of a facade.

    The place is given as shares of the free width and height, from the top left.
    """
    corner, right, down = facade
    width, height = np.linalg.norm(right), np.linalg.norm(down)
    along, below = right / width, down / height
    offset = place * [width - SIGN[0], height - SIGN[1]]
    outwards = np.cross(below, along)
    return corner + offset[0] * along + offset[1] * below + SIGN_GAP * outwards, SIGN[0] * along, SIGN[1] * below


def place_ring(count: int, rng: np.random.Generator) -> Float64:
    """Returns (count, 3, 4) poses on a full circle around the tower.

    Angles are evenly spaced, the rest varies randomly.
    """
    angles = 2 * np.pi * np.arange(count) / count
    distances, heights = rng.uniform(14, 16, count), rng.uniform(2.0, 4.5, count)
    return scene._look_at(scene._around(angles, distances, heights), RING_TARGET + rng.uniform(-0.7, 0.7, (count, 3)))


def place_walk(count: int, rng: np.random.Generator) -> Float64:
    """Returns (count, 3, 4) poses on a line to the square that look along it. The walker sways by a hand's width."""
    centres = np.array([-1.5, -26.0, 3.0]) + rng.uniform(-0.1, 0.1, (count, 3))
    centres[:, 1] += 1.5 * np.arange(count)
    return scene._look_at(centres, centres + np.array([0, 20, -1]) + rng.uniform(-0.7, 0.7, (count, 3)))


WALK = Layout(scene._build_square, place_walk)
TWIN_HOUSES = Layout(build_twins, scene._place_cameras)
TOWER_IN_A_RING = Layout(build_tower, place_ring)
