"""The drawings of the documentation: `python docs/drawings/draw.py` writes them beside this file."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

INK, FAINT, PAPER = "#263238", "#90a4ae", "#ffffff"
BLUE, ORANGE, GREEN, RED, SHADE = "#1e88e5", "#fb8c00", "#43a047", "#e53935", "#eceff1"
Point = tuple[float, float]


def picture(width: int, height: int, title: str, *parts: str) -> str:
    """A complete SVG file on white paper, legible on a dark page too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="14">\n<title>{title}</title>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def text(at: Point, words: str, size: int = 14, colour: str = INK, anchor: str = "middle", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{at[0]:g}" y="{at[1]:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{words}</text>"
    )


def box(at: Point, size: Point, words: str = "", fill: str = SHADE, colour: str = INK, radius: int = 5) -> str:
    x, y = at
    drawn = (
        f'<rect x="{x:g}" y="{y:g}" width="{size[0]:g}" height="{size[1]:g}" rx="{radius}" fill="{fill}" '
        f'stroke="{colour}"/>'
    )
    return drawn + (text((x + size[0] / 2, y + size[1] / 2 + 5), words) if words else "")


def line(*points: Point, colour: str = INK, width: float = 1.5, arrow: bool = False, dashed: bool = False) -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    extra = ' marker-end="url(#tip)"' if arrow else ""
    extra += ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{extra}/>'


def polygon(*points: Point, fill: str = "none", colour: str = INK, opacity: float = 1.0) -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polygon points="{path}" fill="{fill}" fill-opacity="{opacity:g}" stroke="{colour}" stroke-width="1.5"/>'


def circle(at: Point, radius: float, fill: str = "none", colour: str = INK) -> str:
    x, y = at
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'


def pipeline() -> str:
    """Stages and the files between them."""
    files = {"photos": 20, "features.h5": 198, "pairs.txt": 376, "matches.h5": 554, "sparse/": 732}
    parts = [box((x, 40), (110, 44), name, PAPER) for name, x in files.items()]
    for verb, x in zip(("extract", "pair", "match", "map"), list(files.values())[:-1], strict=True):
        parts += [line((x + 110, 62), (x + 176, 62), arrow=True), text((x + 144, 54), verb, 13, BLUE, bold=True)]
    parts += [
        line((253, 84), (253, 138), arrow=True),
        text((260, 116), "vocabulary, index", 13, BLUE, "start", True),
        box((198, 140), (110, 44), "index/", PAPER),
        line((308, 162), (374, 162), arrow=True),
        text((341, 154), "retrieve", 13, BLUE, bold=True),
        box((376, 140), (140, 44), "ranked photos", PAPER),
        line((431, 140), (431, 86), arrow=True, dashed=True),
        text((438, 116), "proposes pairs", 13, FAINT, "start"),
        line((787, 84), (787, 232), (672, 232), arrow=True),
        text((780, 160), "mine", 13, BLUE, "end", True),
        box((560, 210), (110, 44), "patches.h5", PAPER),
        line((560, 232), (442, 232), arrow=True),
        text((501, 224), "train", 13, BLUE, bold=True),
        box((330, 210), (110, 44), "weights", PAPER),
        line((330, 232), (164, 232), (164, 66), arrow=True, dashed=True),
        text((156, 150), "describe with", 13, FAINT, "end"),
    ]
    return picture(862, 280, "Stages, and the files that they hand to each other", *parts)


def hardnet() -> str:
    """The seven layers as blocks: height is the side of the layer's output, width the number of channels."""
    layers = [(1, 32), (32, 32), (32, 32), (64, 16), (64, 16), (128, 8), (128, 8), (128, 1)]
    names = ["patch", "3x3", "3x3", "3x3 /2", "3x3", "3x3 /2", "3x3", "8x8"]
    parts, x = [], 40.0
    for number, ((channels, side), name) in enumerate(zip(layers, names, strict=True)):
        width, height = 10 + channels / 3, max(10.0, side * 4.5)
        fill = SHADE if number == 0 else BLUE if number < 7 else ORANGE
        top = 110 - height / 2
        parts += [
            f'<rect x="{x:g}" y="{top:g}" width="{width:g}" height="{height:g}" fill="{fill}" fill-opacity="0.75" '
            f'stroke="{INK}"/>',
            text((x + width / 2, 206), name, 13),
            text((x + width / 2, 224), f"{channels} x {side}x{side}", 11, FAINT),
        ]
        if number < 7:
            parts.append(line((x + width + 6, 110), (x + width + 46, 110), arrow=True))
        x += width + 54
    parts.append(text((x - 54 + 8, 114), "unit length, 128-D", 13, anchor="start"))
    return picture(830, 245, "HardNet: six 3x3 convolutions and one 8x8", *parts)


def batch() -> str:
    """The distance matrix of a batch, and the closest negative of one pair."""
    count, side, left, top = 7, 32, 70, 50
    rng = random.Random(3)
    parts = [text((left + count * side / 2, 24), "positives p", 14), text((30, top + count * side / 2), "a", 14)]
    row = 3
    values = [[rng.uniform(0.9, 1.4) if i != j else rng.uniform(0.3, 0.6) for j in range(count)] for i in range(count)]
    values[5][row] = 0.72
    values[row][1] = 0.80
    for i in range(count):
        for j in range(count):
            at = (left + j * side, top + i * side)
            grey = 255 - int(150 * max(0.0, 1.3 - values[i][j]))
            fill = f"rgb({grey},{grey},{grey})"
            parts.append(box(at, (side, side), "", GREEN if i == j else fill, PAPER, 0))
            parts.append(text((at[0] + side / 2, at[1] + 21), f"{values[i][j]:.1f}", 12))
        parts.append(text((left - 12, top + i * side + 21), f"a{i + 1}", 12, anchor="end"))
        parts.append(text((left + i * side + side / 2, top - 8), f"p{i + 1}", 12))
    parts += [
        box((left, top + row * side), (count * side, side), "", "none", BLUE, 0),
        box((left + row * side, top), (side, count * side), "", "none", BLUE, 0),
        box((left + row * side + 2, top + 5 * side + 2), (side - 4, side - 4), "", "none", RED, 0),
        box((left + row * side + 3, top + 5 * side + 3), (side - 6, side - 6), "", "none", RED, 0),
    ]
    said = (
        ("green: the pairs, distance d(a, p)", GREEN),
        ("blue: all that is compared with pair 4,", BLUE),
        ("its row and its column", BLUE),
        ("red: the closest of them, its negative,", RED),
        ("here p4's, not a4's", RED),
        (f"loss of pair 4: max(0, 1 + {values[row][row]:.1f} - 0.7)", INK),
    )
    parts += [text((340, 90 + 30 * n), words, 14, colour, "start") for n, (words, colour) in enumerate(said)]
    return picture(640, 295, "The closest negative in the batch", *parts)


def patch() -> str:
    """A keypoint, its circle of one sigma, and the squares of 12 and 20 sigmas."""
    centre, sigma, turn = (170.0, 150.0), 10.0, math.radians(20)

    def corner(x: float, y: float) -> Point:
        return (
            centre[0] + x * math.cos(turn) - y * math.sin(turn),
            centre[1] + x * math.sin(turn) + y * math.cos(turn),
        )

    parts = []
    for across, colour in ((20, BLUE), (12, ORANGE)):
        half = across * sigma / 2
        square = [corner(-half, -half), corner(half, -half), corner(half, half), corner(-half, half)]
        parts.append(polygon(*square, fill=colour, colour=colour, opacity=0.10))
    parts += [
        circle(centre, sigma, colour=INK),
        line(centre, corner(sigma * 2.6, 0), arrow=True),
        text((centre[0], centre[1] + 26), "sigma", 12),
        text(corner(0, -40), "12 sigmas", 13, ORANGE),
        text(corner(0, -78), "20 sigmas", 13, BLUE),
        line((330, 150), (396, 150), arrow=True),
        text((363, 138), "resample", 12),
    ]
    cells, size, left, top = 16, 11, 410, 62
    rng = random.Random(1)
    for i in range(cells):
        for j in range(cells):
            wave = math.sin(0.55 * j + 0.2 * i) + math.sin(0.4 * i - 0.15 * j)
            grey = int(128 + 45 * wave + rng.uniform(-12, 12))
            parts.append(
                f'<rect x="{left + j * size}" y="{top + i * size}" width="{size}" height="{size}" '
                f'fill="rgb({grey},{grey},{grey})"/>'
            )
    parts += [
        text((left + cells * size / 2, top + cells * size + 24), "32x32 pixels, upright,", 13),
        text((left + cells * size / 2, top + cells * size + 42), "mean 0, deviation 1", 13),
    ]
    return picture(640, 310, "From a keypoint to a patch", *parts)


def embedding() -> str:
    """One word's cell, cut by thresholds into signatures."""
    cell = [(60, 70), (200, 35), (330, 90), (345, 215), (215, 270), (85, 220)]
    first, second, third = (150, 110), (175, 95), (280, 225)
    parts = [
        polygon(*cell, fill=SHADE, colour=INK),
        line((50, 190), (350, 120), colour=FAINT, dashed=True),
        line((180, 30), (240, 275), colour=FAINT, dashed=True),
        circle((203, 152), 4, INK),
        text((214, 148), "word", 13, anchor="start"),
        *(
            text(at, bits, 13, FAINT)
            for at, bits in (((100, 150), "01"), ((285, 105), "11"), ((125, 225), "00"), ((315, 195), "10"))
        ),
        circle(first, 5, BLUE, BLUE),
        circle(second, 5, GREEN, GREEN),
        circle(third, 5, RED, RED),
        text((400, 70), "blue: a feature of the query", 14, BLUE, "start"),
        text((400, 105), "green: same word, same bits: a match", 14, GREEN, "start"),
        text((400, 140), "red: same word, other bits: chance", 14, RED, "start"),
        text((400, 190), "dashed: medians of random projections,", 14, FAINT, "start"),
        text((400, 212), "64 of them, a bit of the signature each", 14, FAINT, "start"),
    ]
    return picture(690, 300, "Hamming embedding: signatures within a visual word", *parts)


def expansion() -> str:
    """Features of reliable photos join those of the query within words."""
    parts = [
        box((20, 110), (90, 60), "query", "#e3f2fd", BLUE),
        line((110, 140), (168, 140), arrow=True),
        text((139, 130), "search", 12, BLUE),
    ]
    for number, (name, colour) in enumerate((("rank 1", GREEN), ("rank 2", GREEN), ("rank 3", GREEN), ("rank 4", RED))):
        parts.append(box((170, 30 + 60 * number), (90, 46), name, PAPER, colour))
    parts += [
        text((270, 236), "too few strict matches:", 12, RED, "start"),
        text((270, 252), "left out", 12, RED, "start"),
        line((262, 53), (400, 120), arrow=True, colour=GREEN),
        line((262, 113), (400, 136), arrow=True, colour=GREEN),
        line((262, 173), (400, 152), arrow=True, colour=GREEN),
        box((405, 50), (210, 170), "", SHADE),
        text((510, 72), "within each word", 13, bold=True),
    ]
    rows = (("query", "1011 0010"), ("rank 1", "1010 0010"), ("rank 2", "1011 0110"))
    for number, (name, bits) in enumerate(rows):
        y = 98 + 22 * number
        parts += [text((420, y), name, 12, FAINT, "start"), text((600, y), bits, 13, anchor="end")]
    parts += [
        line((420, 152), (600, 152)),
        text((420, 172), "majority", 12, BLUE, "start", True),
        text((600, 172), "1011 0010", 13, BLUE, "end", True),
        text((510, 204), "and words that two photos agree on", 11, FAINT),
        line((615, 135), (672, 135), arrow=True),
        text((644, 126), "again", 12, BLUE),
        box((674, 105), (130, 60), "better ranking", "#e3f2fd", BLUE),
    ]
    return picture(830, 290, "Hamming query expansion", *parts)


def views() -> str:
    """Two cameras and one point: the plane that matches have to agree with."""
    left, right, point = (110.0, 250.0), (590.0, 250.0), (350.0, 45.0)

    def at(camera: Point, share: float, target: Point = point) -> Point:
        return camera[0] + share * (target[0] - camera[0]), camera[1] + share * (target[1] - camera[1])

    parts = [
        polygon(left, point, right, fill=BLUE, colour="none", opacity=0.08),
        polygon((150, 120), (255, 190), (255, 260), (150, 205), fill=SHADE),
        polygon((550, 120), (445, 190), (445, 260), (550, 205), fill=SHADE),
        line(left, right, colour=FAINT, dashed=True),
        line(left, point, colour=BLUE),
        line(right, point, colour=BLUE),
        line((550, 136), (445, 226), colour=ORANGE, width=2.5),
        circle(left, 5, INK),
        circle(right, 5, INK),
        circle(point, 5, BLUE, BLUE),
        circle(at(left, 0.41), 4, BLUE, BLUE),
        circle(at(right, 0.36), 4, BLUE, BLUE),
        circle((530, 195), 4, RED, RED),
        text((350, 32), "point", 13, BLUE),
        text((110, 275), "camera", 13),
        text((590, 275), "camera", 13),
        text((350, 270), "baseline", 12, FAINT),
        text((610, 128), "epipolar line:", 13, ORANGE, "start"),
        text((610, 146), "the partner lies on it", 13, ORANGE, "start"),
        text((610, 196), "a match that does not", 13, RED, "start"),
    ]
    return picture(780, 295, "Two-view geometry", *parts)


def track() -> str:
    """Keypoints of one point, taken back to the object and compared there."""
    point = (330.0, 220.0)
    parts = [
        line((120, 220), (540, 220), colour=FAINT),
        text((550, 224), "plane across it", 12, FAINT, "start"),
    ]
    cameras = ((130, 70), (260, 45), (390, 45), (540, 85))
    for number, camera in enumerate(cameras):
        wrong = number == 3
        colour = RED if wrong else BLUE
        parts += [line(camera, point, colour=colour), circle(camera, 5, INK)]
        parts.append(text((camera[0], camera[1] - 12), f"photo {number + 1}", 13))
    for radius in (31, 34, 28):
        parts.append(
            f'<ellipse cx="{point[0]}" cy="{point[1]}" rx="{radius}" ry="{radius * 0.35:g}" fill="none" '
            f'stroke="{BLUE}" stroke-width="1.5"/>'
        )
    parts += [
        f'<ellipse cx="{point[0]}" cy="{point[1]}" rx="78" ry="27" fill="none" stroke="{RED}" stroke-width="1.5"/>',
        line(point, (330, 120), arrow=True, dashed=True),
        text((338, 140), "mean ray", 12, anchor="start"),
        text((330, 275), "three keypoints cover the same piece of the object, the fourth one more than", 13),
        text((330, 293), "twice as much: its patch shows something else, and is dropped", 13),
    ]
    return picture(700, 310, "Observations of a point, compared on the object", *parts)


DRAWINGS: dict[str, Callable[[], str]] = {
    "pipeline": pipeline,
    "hardnet": hardnet,
    "batch": batch,
    "patch": patch,
    "embedding": embedding,
    "expansion": expansion,
    "views": views,
    "track": track,
}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (Path(__file__).parent / f"{name}.svg").write_text(draw(), encoding="utf-8")
