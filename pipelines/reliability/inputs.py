"""Small inputs of every kind that the verbs read: photos of all formats, and data sets in their authors' layouts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

_ORIENTATION, _MAKE, _MODEL, _DETAILS, _FOCAL_LENGTH, _FOCAL_LENGTH_35MM = (
    0x0112,
    0x010F,
    0x0110,
    0x8769,
    0x920A,
    0xA405,
)


def write_inputs(folder: Path, photos: Path) -> None:
    """Writes all inputs, made from photos of one place."""
    small = [_small(path) for path in sorted(photos.glob("*.jpg"))[:3]]
    _write_formats(folder / "formats", small[0], small[1])
    _write_brown(folder / "brown" / "liberty")
    _write_hpatches(folder / "hpatches")
    _write_sequence(folder / "sequences" / "v_place", small[0])
    _write_wide_pairs(folder, small)
    _write_landmarks(folder / "oxford", small)


def exif(orientation: int = 6) -> bytes:
    """EXIF of a camera with a focal length, as it stands in an APP1 segment."""
    tags = Image.Exif()
    tags[_ORIENTATION], tags[_MAKE], tags[_MODEL] = orientation, "Maker", "Model 1"
    tags.get_ifd(_DETAILS).update({_FOCAL_LENGTH: 35.0, _FOCAL_LENGTH_35MM: 40})
    return tags.tobytes()


def add_exif(path: Path) -> None:
    """Puts EXIF into a JPEG file without coding its pixels again."""
    data, segment = path.read_bytes(), exif(1)
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:])


def _small(path: Path) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(cv2.imread(str(path)), (160, 120), interpolation=cv2.INTER_AREA), np.uint8)


def _write_formats(folder: Path, photo: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
    """Writes a folder for each format, with a photo in it and a sound one next to it."""
    colours = Image.fromarray(photo[..., ::-1])
    pillow = {
        "jpeg": ("a.jpg", {"exif": exif()}),
        "progressive": ("a.jpg", {"progressive": True, "exif": exif()}),
        "png": ("a.png", {"exif": exif()}),
        "tiff": ("a.tif", {"exif": exif()}),
        "webp": ("a.webp", {"exif": exif()}),
        "bmp": ("a.bmp", {}),
        "ppm": ("a.ppm", {}),
    }
    for kind, (name, options) in pillow.items():
        (folder / kind).mkdir(parents=True)
        colours.save(folder / kind / name, **options)  # type: ignore[arg-type]
    deep = photo[..., 0].astype(np.uint16) * 257
    for kind, name, pixels in (
        ("deep-png", "a.png", deep),
        ("deep-tiff", "a.tif", deep),
        ("pgm", "a.pgm", photo[..., 0]),
        ("transparent", "a.png", np.dstack([photo, photo[..., 0]])),
    ):
        (folder / kind).mkdir()
        cv2.imwrite(str(folder / kind / name), pixels)
    for place in folder.iterdir():
        cv2.imwrite(str(place / "sound.png"), other)


def _patches(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Smooth random patches, (count, side, side)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 8), np.uint8)
    return np.stack([cv2.resize(one, (side, side), interpolation=cv2.INTER_CUBIC) for one in coarse])


def _write_brown(folder: Path) -> None:
    folder.mkdir(parents=True)
    patches = np.repeat(_patches(128, 64, 0), 2, 0)
    cv2.imwrite(str(folder / "patches0000.bmp"), patches.reshape(16, 16, 64, 64).swapaxes(1, 2).reshape(1024, 1024))
    (folder / "info.txt").write_text("".join(f"{patch // 2} {patch % 2}\n" for patch in range(256)))
    pairs = [(2 * k, k, 2 * k + 1, k) if k % 2 else (2 * k, k, 2 * k + 3, k + 1) for k in range(100)]
    lines = (f"{a} {first} 0 {b} {second} 0 0\n" for a, first, b, second in pairs)
    (folder / "m50_100_100_0.txt").write_text("".join(lines))


def _write_hpatches(folder: Path) -> None:
    names = ("ref", *(f"{level}{photo}" for level in "eht" for photo in range(1, 6)))
    for number, sequence in enumerate(("v_wall", "i_ski")):
        (folder / sequence).mkdir(parents=True)
        for name in names:
            cv2.imwrite(str(folder / sequence / f"{name}.png"), _patches(16, 65, number).reshape(-1, 65))
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "splits.json").write_text(json.dumps({"b": {"name": "b", "test": ["v_wall", "i_ski"]}}))
    verification = "s1,t1,idx1,s2,t2,idx2\n"
    for name, text in {
        "verif_pos": f"{verification}v_wall,0,3,v_wall,2,3\ni_ski,4,1,i_ski,0,1\n",
        "verif_neg_intra": f"{verification}v_wall,1,0,v_wall,2,1\n",
        "verif_neg_inter": f"{verification}i_ski,5,0,v_wall,3,2\n",
        "retr_queries": "s,idx\ni_ski,1\n",
        "retr_distractors": "s,idx\nv_wall,0\nv_wall,2\ni_ski,0\n",
    }.items():
        (tasks / f"{name}_split-b.csv").write_text(text)


def _write_sequence(folder: Path, photo: NDArray[np.uint8]) -> None:
    """Writes six photos and the homographies between them."""
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "1.ppm"), photo)
    for number in range(2, 7):
        warp = np.array([[1, 0.01 * number, 1], [0, 1, number], [0, 0, 1]], float)
        cv2.imwrite(str(folder / f"{number}.ppm"), cv2.warpPerspective(photo, warp, (160, 120)))
        np.savetxt(folder / f"H_1_{number}", warp)


def _write_wide_pairs(folder: Path, photos: list[NDArray[np.uint8]]) -> None:
    """Writes a pair in the layout of EVD and one in the layout of WxBS."""
    for name in ("1", "2", "h"):
        (folder / "evd" / name).mkdir(parents=True)
    (folder / "wxbs" / "group" / "place").mkdir(parents=True)
    for number in (0, 1):
        cv2.imwrite(str(folder / "evd" / str(number + 1) / "place.png"), photos[0])
        cv2.imwrite(str(folder / "wxbs" / "group" / "place" / f"0{number + 1}.png"), photos[number])
    np.savetxt(folder / "evd" / "h" / "place.txt", np.eye(3))
    points = np.random.default_rng(0).uniform(10, 100, (12, 2))
    np.savetxt(folder / "wxbs" / "group" / "place" / "corrs.txt", np.hstack([points, points + 3]))


def _write_landmarks(folder: Path, photos: list[NDArray[np.uint8]]) -> None:
    """Writes a data set with both the original and the revisited ground truth."""
    (folder / "images").mkdir(parents=True)
    (folder / "gt").mkdir()
    names = [f"house_{number:06d}" for number in range(len(photos))]
    for name, photo in zip(names, photos, strict=True):
        cv2.imwrite(str(folder / "images" / f"{name}.jpg"), photo)
    (folder / "gt" / "house_1_query.txt").write_text(f"oxc1_{names[0]} 10.0 10.0 150.0 110.0\n")
    for kind, text in {"good": f"{names[0]}\n{names[1]}\n", "ok": "", "junk": f"{names[2]}\n"}.items():
        (folder / "gt" / f"house_1_{kind}.txt").write_text(text)
    query = {"bbx": np.array([10.0, 10, 150, 110]), "easy": np.array([1]), "hard": [0], "junk": np.array([2])}
    truth = {"imlist": names, "qimlist": [names[0]], "gnd": [query]}
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth, 2))
