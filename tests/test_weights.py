"""Weights as files: converted, held against their cards, and trained from a model by the command line alone."""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import kornia.feature.hardnet
import numpy as np
import pytest
import torch
from kornia.feature import HardNet as KorniaHardNet
from safetensors.torch import save, save_file

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.features.descriptors import make_descriptor
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.weight_files import find_weights, read_weights, shipped_names, verify, write_weights
from hardnet_sfm.networks.hardnet import HardNet
from hardnet_sfm.networks.loading import load_network
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.weights import convert


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, KorniaHardNet]:
    """As the authors publish theirs."""
    torch.manual_seed(0)
    network = KorniaHardNet(pretrained=False).eval()
    torch.save({"epoch": 9, "state_dict": network.state_dict()}, tmp_path / "authors.pth")
    return tmp_path / "authors.pth", network


def test_a_converted_checkpoint_describes_as_kornia_does(
    checkpoint: tuple[Path, KorniaHardNet], tmp_path: Path
) -> None:
    source, network = checkpoint
    convert(source, tmp_path / "ours.safetensors")
    descriptor = make_descriptor("hardnet", tmp_path / "ours.safetensors")
    patches = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        np.testing.assert_allclose(descriptor.network(patches).numpy(), network(patches).numpy(), atol=1e-5)
    assert descriptor.measurement_size == 12
    metadata = read_weights(tmp_path / "ours.safetensors").metadata
    assert (metadata["source"], metadata["patch_size"]) == ("authors.pth", "32")


def test_the_authors_weights_come_through_kornia(
    checkpoint: tuple[Path, KorniaHardNet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the README says for users with a network, with the server on this machine."""
    source, network = checkpoint

    class Server(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=source.parent))
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/{source.name}"
    monkeypatch.setitem(kornia.feature.hardnet.urls, "liberty_aug", address)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    try:
        torch.save(KorniaHardNet(pretrained=True).state_dict(), tmp_path / "fetched.pth")
    finally:
        server.shutdown()
        server.server_close()
    main(["weights", "convert", str(tmp_path / "fetched.pth"), "-o", str(tmp_path / "authors.safetensors")])
    descriptor = make_descriptor("hardnet", tmp_path / "authors.safetensors")
    patches = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        np.testing.assert_allclose(descriptor.network(patches).numpy(), network(patches).numpy(), atol=1e-5)
    expected, found = network.state_dict(), read_weights(tmp_path / "authors.safetensors").tensors
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


class Harmful:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("harm",)


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"weight": torch.ones(1)}, "more": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(HardnetSfmError, match=r"harmful\.pth: damaged, or a file with more than tensors"):
        convert(tmp_path / "harmful.pth", tmp_path / "out.safetensors")
    assert "harm" not in capsys.readouterr().out
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04", b"\x80\x02J\x01"])
def test_what_is_no_checkpoint_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(HardnetSfmError, match=r"a\.pth"):
        convert(tmp_path / "a.pth", tmp_path / "out.safetensors")


def test_a_checkpoint_without_a_state_dict_is_a_clear_error(tmp_path: Path) -> None:
    for content in ([torch.ones(2)], {3: torch.ones(2)}, {"weight": 3}, {}):
        torch.save(content, tmp_path / "list.pth")
        with pytest.raises(HardnetSfmError, match="no state dict in it"):
            convert(tmp_path / "list.pth", tmp_path / "out.safetensors")


def test_converted_weights_lie_beside_the_checkpoint_and_take_no_files_place(
    checkpoint: tuple[Path, KorniaHardNet], tmp_path: Path
) -> None:
    source = Path(shutil.copy(checkpoint[0], tmp_path / "mine.pth"))
    assert convert(source) == tmp_path / "mine.safetensors"
    before = (tmp_path / "mine.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"mine\.safetensors is there already"):
        convert(source)
    convert(source, tmp_path / "mine.safetensors", measurement_size=20)
    assert (tmp_path / "mine.safetensors").read_bytes() != before
    with pytest.raises(HardnetSfmError, match=r"no such file: \."):
        convert(Path())


def test_verify_holds_a_file_against_its_card(tmp_path: Path) -> None:
    path, card = tmp_path / "mine.safetensors", tmp_path / "mine.md"
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(HardnetSfmError, match="no card next to it"):
        verify(path)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    card.write_text(f"# Mine\n\nsha256 `{expected}`\n", encoding="utf-8")
    assert verify(path) == expected
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(HardnetSfmError, match=f"its card says {expected}"):
        verify(path)


def test_written_weights_are_read_as_they_were(tmp_path: Path) -> None:
    network = HardNet()
    write_weights(tmp_path / "a.safetensors", network.state_dict(), {"architecture": "hardnet", "seed": "3"})
    read = read_weights(tmp_path / "a.safetensors")
    (tmp_path / "other").touch()
    assert read.path.stat().st_mode == (tmp_path / "other").stat().st_mode  # others may read it, if they may read files
    assert read.metadata["seed"] == "3"
    assert all(torch.equal(tensor, read.tensors[name]) for name, tensor in network.state_dict().items())


def test_shipped_weights_are_what_their_cards_say() -> None:
    for name in shipped_names():
        path = find_weights(name)
        verify(path)
        assert path.stat().st_size <= 6_000_000
        metadata = read_weights(path).metadata
        known = {"architecture", "patch_size", "measurement_size", "max_ratio", "licence", "data", "steps"}
        assert known <= metadata.keys()
        assert make_descriptor(metadata["architecture"], path).max_ratio == float(metadata["max_ratio"])


def test_weights_that_there_are_not_are_named() -> None:
    with pytest.raises(HardnetSfmError, match="no shipped weights and no file named nowhere"):
        find_weights("nowhere")


def test_converting_never_writes_over_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = HardNet()
    kept, checkpoint = tmp_path / "mine.safetensors", tmp_path / "theirs.pth"
    write_weights(kept, network.state_dict(), {"architecture": "hardnet", "measurement_size": "20", "seed": "7"})
    torch.save(network.state_dict(), checkpoint)
    before = kept.read_bytes(), checkpoint.read_bytes()
    for arguments in ([kept], [checkpoint, "-o", checkpoint], [kept, "-o", tmp_path / "other.safetensors"]):
        with pytest.raises(SystemExit) as exit:
            main(["weights", "convert", *map(str, arguments)])
        assert exit.value.code == 2
        said = capsys.readouterr().err
        assert ("would be overwritten" if arguments[0] == checkpoint else "safetensors already") in said
    assert (kept.read_bytes(), checkpoint.read_bytes()) == before
    main(["weights", "convert", str(checkpoint), "--measurement-size", "15"])
    assert read_weights(tmp_path / "theirs.safetensors").metadata["measurement_size"] == "15.0"
    for size in ("0", "nan", "inf"):
        with pytest.raises(SystemExit):
            main(["weights", "convert", str(checkpoint), "--measurement-size", size])


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tensors = HardNet().state_dict()
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(save(tensors, {"architecture": "hardnet"}))
    with pytest.raises(HardnetSfmError, match=r"damaged\.safetensors: not all numbers of features\.\S+ are finite"):
        load_network(path)


def test_command_shows_and_converts(
    checkpoint: tuple[Path, KorniaHardNet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["weights", "convert", str(checkpoint[0])])
    assert capsys.readouterr().out.strip() == str(tmp_path / "authors.safetensors")
    main(["weights", "show", str(tmp_path / "authors.safetensors")])
    shown = capsys.readouterr().out
    assert (
        "architecture  hardnet" in shown
        and hashlib.sha256((tmp_path / "authors.safetensors").read_bytes()).hexdigest() in shown
    )
    main(["weights", "list"])
    listed = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    assert ["hardnet-sfm", "weights", "of", "--descriptor"] in listed and len(listed) == len(shipped_names())
    for wrong in (["weights", "show"], ["weights", "list", "x"], ["weights", "show", "x", "-o", "y"]):
        with pytest.raises(SystemExit) as exit:
            main(wrong)
        assert exit.value.code == 2


@pytest.mark.slow
def test_commands_go_from_a_model_to_weights_and_back(
    small_scene: tuple[Path, Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = str(small_scene[0]), tmp_path / "out"
    options = {"extract_options": ExtractOptions(max_keypoints=1500), "map_options": MapOptions(camera_mode="single")}
    hardnet_sfm.reconstruct(photos, out, **options)  # type: ignore[arg-type]
    main(["mine", str(out), "--images", photos, "-o", str(tmp_path / "mined.h5"), "--sheet", str(tmp_path / "s.png")])
    said = capsys.readouterr().out
    assert "dropped: orientation" in said and (tmp_path / "s.png").stat().st_size > 10_000
    main(["warp", photos, "-o", str(tmp_path / "warps.h5"), "--views", "2", "--points", "100"])
    weights = str(tmp_path / "my.safetensors")
    sets = [str(tmp_path / "mined.h5"), str(tmp_path / "warps.h5")]
    main(["train", *sets, "-o", weights, "--steps", "3", "--batch-size", "64", "--validation", sets[0]])
    assert "3 steps in" in capsys.readouterr().out
    main(["extract", photos, "--workspace", str(tmp_path / "again"), "--weights", weights, "--descriptor", "hardnet"])
    with hardnet_sfm.FeatureStore(tmp_path / "again" / "features.h5") as features:
        assert features.header["options"]["weights_sha256"] == read_weights(Path(weights)).sha256


def test_a_checkpoint_with_numbers_that_are_not_finite_is_named(tmp_path: Path) -> None:
    tensors = read_weights(find_weights("hardnet-sfm")).tensors
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[first].view(-1)[0] = float("nan")
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")
    with pytest.raises(HardnetSfmError, match=r"a\.pth: damaged, or its training diverged: not all numbers of"):
        convert(tmp_path / "a.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
