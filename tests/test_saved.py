"""A saved head is the same head again, and nothing but a whole one loads."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_predictors import features, make_heads

from featcache.common.errors import UserError
from heads.saved import KINDS, load_head, save_head

META = {"method": "logreg", "class_names": ["ant", "bee", "Käfer"], "encoder": {"cut": 5, "mean": [0.5, 0.25]}}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_saved_head_predicts_the_same_bits(kind: str, tmp_path: Path) -> None:
    head = make_heads()[kind]
    save_head(tmp_path / "head.npz", head, META)
    again, meta = load_head(tmp_path / "head.npz")
    assert type(again) is type(head)
    assert meta == META
    assert again.scores(features(30)).tobytes() == head.scores(features(30)).tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["head.npz"]


def test_the_file_is_plain_npz_with_json(tmp_path: Path) -> None:
    save_head(tmp_path / "head.npz", make_heads()["linear"], META)
    with np.load(tmp_path / "head.npz", allow_pickle=False) as file:
        described = json.loads(file["description"].tobytes())
        assert sorted(file.files) == ["bias", "description", "mean", "probabilistic", "scale", "weight"]
    assert described == {"format": "featcache-head", "version": 1, "kind": "linear", "meta": META}


def test_saving_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "head.npz"
    save_head(path, make_heads()["mlp"], {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_head(path, make_heads()["linear"], {"not": {"json"}})
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="cannot write the head"):
        save_head(tmp_path / "no folder" / "head.npz", make_heads()["linear"], {})


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code was executed')",)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "head.npz", description=np.array([Bomb()], dtype=object))
    with pytest.raises(UserError, match="no saved head, or a damaged one"):
        load_head(tmp_path / "head.npz")


def test_damage_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "head.npz"
    save_head(path, make_heads()["linear"], META)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[:-30], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(UserError) as caught:
            load_head(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="there is no saved head at"):
        load_head(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is no saved head"),
        ({"version": 2}, "format version 2, this library reads 1"),
        ({"kind": "forest"}, "unknown kind 'forest': expected one of linear"),
        ({"kind": "mlp"}, "inconsistent: a mlp head holds"),
        ({"kind": ["linear"]}, "unknown kind"),
        ({"meta": 3}, "description"),
    ],
)
def test_what_does_not_describe_a_head_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    described = {"format": "featcache-head", "version": 1, "kind": "linear", "meta": {}} | change
    text = np.frombuffer(json.dumps(described).encode(), np.uint8)
    np.savez(tmp_path / "head.npz", description=text, **make_heads()["linear"].arrays())
    with pytest.raises(UserError, match=message):
        load_head(tmp_path / "head.npz")


@pytest.mark.parametrize(
    ("kind", "change", "meta", "message"),
    [
        ("neighbors", {"n_classes": np.int64(10**15)}, META, "scores 1,000,000,000,000,000 classes and names 3"),
        ("neighbors", {"n_classes": np.int64(10**15)}, {}, "1,000,000,000,000,000 classes without names"),
        ("linear", {}, {"class_names": ["ant", "bee"]}, "it scores 3 classes and names 2"),
        ("linear", {}, {"class_names": "abc"}, "class_names are no list of names"),
        ("linear", {}, {"class_names": ["a", "b", 3]}, "class_names are no list of names"),
        (
            "linear",
            {"weight": np.ones((0, 7), "f4"), "bias": np.ones(0, "f4")},
            {},
            r"weight is \(0, 7\), expected one",
        ),
        ("linear", {"bias": np.array(["a"] * 3)}, {}, "bias is <U1"),
        ("linear", {"more": np.zeros(3)}, {}, "a linear head holds"),
        ("linear", {"a\nb" + "c" * 900: np.zeros(3)}, {}, "a linear head holds"),
    ],
)
def test_heads_that_contradict_themselves_are_refused(
    kind: str, change: dict[str, np.ndarray], meta: dict[str, object], message: str, tmp_path: Path
) -> None:
    described = {"format": "featcache-head", "version": 1, "kind": kind, "meta": meta}
    text = np.frombuffer(json.dumps(described).encode(), np.uint8)
    np.savez(tmp_path / "head.npz", description=text, **{**make_heads()[kind].arrays(), **change})
    with pytest.raises(UserError, match=message) as caught:
        load_head(tmp_path / "head.npz")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_compressed_heads_are_refused(tmp_path: Path) -> None:
    text = np.frombuffer(b"{}", np.uint8)
    np.savez_compressed(tmp_path / "head.npz", description=text, **make_heads()["linear"].arrays())
    with pytest.raises(UserError, match="is compressed or encrypted, expected stored bytes"):
        load_head(tmp_path / "head.npz")


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "head.npz", "w") as archive:
        archive.writestr("description", "hello")
    with pytest.raises(UserError, match="no saved head"):
        load_head(tmp_path / "head.npz")
