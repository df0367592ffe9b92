"""Files from strangers: each is read as what it is or refused in one line, and takes no memory that it does not have.

``FEATCACHE_FUZZ_CASES`` sets the number of damaged files of each kind.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bombs import ALL
from forking import Forked
from mutations import mutated
from PIL import Image
from test_predictors import make_heads
from test_runs import RECORD, predictions

from featcache.cache.canary import Canary, compare
from featcache.common.errors import UserError
from featcache.models import weights
from featcache.sources import decoding
from featcache.sources.decoding import DamagedImageError
from heads.plain_data import read_arrays
from heads.run_canary import read_canary
from heads.runs import read_run, write_run
from heads.saved import KINDS, load_head, save_head

CASES = int(os.environ.get("FEATCACHE_FUZZ_CASES", "200"))
#: What reading all the bombs may take beyond what reading sound files takes.
MEMORY_MB = 64
BOMBS = [(ending, name) for ending, builds in ALL.items() for name in builds]


def decode(path: Path) -> np.ndarray:
    return decoding.decode(decoding.read(path))


def read(path: Path) -> object:
    """By the file's ending."""
    return {".npz": load_head, ".pth": weights.read, ".safetensors": weights.read, ".jpg": decode}[path.suffix](path)


def one_line(error: Exception) -> bool:
    return str(error).isprintable() and 0 < len(str(error)) < 700


@pytest.mark.parametrize(("ending", "name"), BOMBS, ids=[" ".join(bomb) for bomb in BOMBS])
def test_a_bomb_is_refused_in_one_line(ending: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb{ending}"
    ALL[ending][name](path)
    with pytest.raises((UserError, DamagedImageError)) as caught:
        read(path)
    assert one_line(caught.value)


def report_memory(folder: str) -> None:
    """Read one sound file of each kind, then all bombs; print by how many MB the peak rose."""

    def peak_mb() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)

    for path in sorted(Path(folder, "sound").iterdir()):
        read(path)
    before = peak_mb()
    for path in sorted(Path(folder, "bombs").iterdir()):
        try:
            read(path)
        except (UserError, DamagedImageError):
            continue
        raise AssertionError(path)
    print(peak_mb() - before)


def test_all_bombs_together_take_little_memory_and_time(tmp_path: Path) -> None:
    (tmp_path / "bombs").mkdir()
    (tmp_path / "sound").mkdir()
    for ending, builds in ALL.items():
        for name, build in builds.items():
            build(tmp_path / "bombs" / f"{name}{ending}")
    save_head(tmp_path / "sound/head.npz", make_heads()["linear"], {})
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / "sound" / name).write_bytes(weight_file(name))
    Image.new("RGB", (64, 64)).save(tmp_path / "sound/picture.jpg")
    process = Forked(report_memory, str(tmp_path), folder=tmp_path)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert float(out) < MEMORY_MB


def weight_file(name: str) -> bytes:
    generator = torch.Generator().manual_seed(0)
    state = {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "norm.num_batches_tracked": torch.tensor(3),
        "fc.weight": torch.randn(5, 4, generator=generator).half(),
        "fc.bias": torch.randn(10, generator=generator)[::2],
    }
    if name.endswith(".safetensors"):
        save = pytest.importorskip("safetensors.torch").save
        return bytes(save({key: tensor.contiguous() for key, tensor in state.items()}))
    buffer = io.BytesIO()
    if name == "p.pth":  # parameters, and the OrderedDict with attributes that a module gives
        state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict(keep_vars=True)
    checkpoint = {"epoch": 3, "state_dict": state, "lr": [0.1, None]}
    torch.save(checkpoint, buffer, _use_new_zipfile_serialization=name != "stream.pth")
    return buffer.getvalue()


def image_file(kind: str) -> bytes:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    mode = {"PNG": "RGBA", "WEBP": "RGBA"}.get(kind, "RGB")
    pixels = rng.integers(0, 256, (12, 17, len(mode)), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def check_head(path: Path) -> None:
    head, meta = load_head(path)
    json.dumps(meta)
    with np.errstate(all="ignore"):
        scores = head.scores(np.ones((3, head.n_features), np.float32))
    assert scores.shape == (3, head.n_classes)
    assert sum(array.nbytes for array in head.arrays().values()) <= path.stat().st_size


def check_run(path: Path) -> None:
    run = read_run(path.parent)
    json.dumps(run.record, indent=1).encode()
    for split in ("val", "test"):
        ids, labels, scores = (run.predictions[f"{split}_{part}"] for part in ("ids", "labels", "scores"))
        assert ids.shape == labels.shape == scores.shape[:1]
        assert np.isfinite(scores).all()
        "\n".join(ids).encode()


def check_canary(path: Path) -> None:
    canaries = read_canary(path.parent, n_encoders=2)
    assert canaries is not None
    for canary in canaries:
        compare(canary, canary, precision="fp32")
        assert "".join(canary.ids).encode()
        assert canary.features.nbytes <= path.stat().st_size


def check_weights(path: Path) -> None:
    state, _ = weights.read(path)
    assert state
    assert all(type(tensor) is torch.Tensor and tensor.nbytes <= path.stat().st_size for tensor in state.values())
    weights.sha256(state)


def check_image(path: Path) -> None:
    pixels = decode(path)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 2 or pixels.shape[2] == 3
    assert pixels.size


def sound_files(folder: Path) -> dict[str, tuple[Path, Callable[[Path], None]]]:
    """By kind: a sound file, and what reads it and checks what was read."""
    files: dict[str, tuple[Path, Callable[[Path], None]]] = {}
    for kind in KINDS:
        path = folder / f"{kind}.npz"
        save_head(path, make_heads()[kind], {"class_names": ["ant", "bee", "Käfer"]})
        files[kind] = path, check_head
    head = make_heads()["linear"]
    canary = Canary(("a.png", "b.png"), np.ones((2, 5), np.float16), np.zeros((2, 16), np.uint8))
    write_run(
        folder / "run", record=RECORD, predictions=predictions(), head=head, head_meta={}, canaries=[canary, canary]
    )
    files["canary.npz"] = folder / "run" / "canary.npz", check_canary
    for name in ("run.json", "predictions.npz"):
        files[name] = folder / "run" / name, check_run
    for name in ("p.pth", "w.pth", "stream.pth", "w.safetensors"):
        files[name] = folder / name, check_weights
        (folder / name).write_bytes(weight_file(name))
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"):
        files[kind] = folder / f"{kind}.jpg", check_image
        (folder / f"{kind}.jpg").write_bytes(image_file(kind))
    return files


KINDS_OF_FILES = [
    *KINDS,
    "run.json",
    "canary.npz",
    "predictions.npz",
    "p.pth",
    "w.pth",
    "stream.pth",
    "w.safetensors",
    *decoding.FORMATS,
]


def outcome(path: Path, check: Callable[[Path], None], seed: int) -> str:
    try:
        check(path)
    except (UserError, DamagedImageError) as error:
        return "refused" if one_line(error) else f"seed {seed}: {error!r}"
    except BaseException as error:
        raise AssertionError(f"seed {seed}") from error
    return "read"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS_OF_FILES)
def test_damaged_files_are_refused_in_one_line_or_whole(kind: str, tmp_path: Path) -> None:
    path, check = sound_files(tmp_path)[kind]
    sound = path.read_bytes()
    check(path)
    outcomes: Counter[str] = Counter()
    for seed in range(CASES):
        path.write_bytes(mutated(random.Random(f"{kind} {seed}"), sound))
        outcomes[outcome(path, check, seed)] += 1
    print(kind, dict(outcomes))
    assert outcomes.keys() == {"read", "refused"}


def test_arrays_of_any_order_and_byte_order_are_the_same(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    others = {"swapped": values.astype(">f4"), "fortran": np.asfortranarray(values), "text": np.array(["ä", "bc"])}
    np.savez(tmp_path / "a.npz", plain=values, **others)
    arrays = read_arrays(tmp_path / "a.npz")
    for name in ("plain", "swapped", "fortran"):
        assert arrays[name].dtype == np.float32
        np.testing.assert_array_equal(arrays[name], values)
    assert arrays["text"].tolist() == ["ä", "bc"]
