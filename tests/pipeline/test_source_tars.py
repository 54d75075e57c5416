"""Tar files of videos: members by key, with what lies beside them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from latents.errors import SourceError
from latents.recipe import sha256_hex
from pipeline.source_entries import Annotation
from pipeline.source_hashing import hash_sources
from pipeline.source_places import digest_of_place
from pipeline.source_tars import files_of_tar
from pipeline.sources import HashedSource, KnownFile, find_sources, source_of_uri


def write_tar(path: Path, members: Mapping[str, bytes], *, mode: str = "w") -> str:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def test_members_that_share_a_key_belong_together(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "shard.tar",
        {
            "a/001.json": b'{"class": 7, "caption": "Rain.", "split": "test", "size": [1, 2]}',
            "a/001.mp4": b"one",
            "a/002.left.MKV": b"two",
            "a/002.cls": b"12\n",
            "a/002.txt": b"A dog.",
            "b/001.webm": b"three",
            "notes.md": b"",
        },
    )
    one, two, three = files_of_tar(tar)
    assert [one.uri, two.uri, three.uri] == [
        f"tar://{name}::{tar}" for name in ("a/001.mp4", "a/002.left.MKV", "b/001.webm")
    ]
    assert one.annotation == Annotation(label="7", caption="Rain.", split="test")
    assert two.annotation == Annotation(label="12", caption="A dog.")
    assert three.annotation is None


def test_a_member_is_the_source_of_its_bytes_by_place_and_by_name(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "shard.tar", {"1.mp4": b"one", "2.mp4": b"other", "3.mp4": b""})
    found = hash_sources(find_sources([tar]), {}, num_threads=1)
    again = hash_sources([source_of_uri(one.source.uri) for one in found], {}, num_threads=1)
    for hashed in (found, again):
        assert [one.digest for one in hashed if isinstance(one, HashedSource)] == [
            sha256_hex(content) for content in (b"one", b"other", b"")
        ]
    assert [one.size for one in found if isinstance(one, HashedSource)] == [3, 5, 0]


def test_members_are_read_again_only_when_the_tar_changed(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "shard.tar", {"1.mp4": b"one"})
    (first,) = hash_sources(find_sources([tar]), {}, num_threads=1)
    assert isinstance(first, HashedSource)
    known = {first.source.uri: KnownFile(size=3, mtime_ns=first.mtime_ns, digest="on record")}
    (same,) = hash_sources(find_sources([tar]), known, num_threads=1)
    write_tar(tmp_path / "shard.tar", {"1.mp4": b"two"})
    (changed,) = hash_sources(find_sources([tar]), known, num_threads=1)
    assert isinstance(same, HashedSource)
    assert isinstance(changed, HashedSource)
    assert (same.digest, changed.digest) == ("on record", sha256_hex(b"two"))


def test_a_list_may_name_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "shard.tar", {"1.mp4": b"one", "2.mp4": b"two"})
    (tmp_path / "list.txt").write_text("shard.tar\n")
    assert len(find_sources([str(tmp_path / "list.txt")])) == 2


def test_a_member_that_is_gone_is_told(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "shard.tar", {"1.mp4": b"one"})
    with pytest.raises(FileNotFoundError, match=r"has no member '2\.mp4'"):
        digest_of_place(f"tar://2.mp4::{tar}")


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"notes.md": b""}, "holds no video"),
        ({"1.mp4": b"", "1.json": b"[1]"}, r"member '1\.json': wanted UTF-8 text or a JSON object"),
        ({"1.mp4": b"", "1.txt": b"\xff"}, r"member '1\.txt': wanted UTF-8 text"),
        ({"1.mp4": b"", "1.txt": b"x" * (2**20 + 1)}, "wanted a text of up to 1 MiB"),
        ({"1::2.mp4": b""}, "with :: in its name"),
    ],
)
def test_a_tar_that_cannot_be_taken_says_why(
    tmp_path: Path, members: Mapping[str, bytes], problem: str
) -> None:
    with pytest.raises(SourceError, match=problem):
        find_sources([write_tar(tmp_path / "shard.tar", members)])


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "shard.tar", {"1.mp4": b"one"})
    write_tar(tmp_path / "shard.tar", {"1.mp4": b"two"}, mode="a")
    with pytest.raises(SourceError, match=r"two members '1\.mp4'"):
        find_sources([tar])


@pytest.mark.parametrize("num_bytes", [700, 2000])
def test_a_compressed_or_cut_tar_is_refused(tmp_path: Path, num_bytes: int) -> None:
    write_tar(tmp_path / "whole.tar", {"1.mp4": b"x" * 5000})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:num_bytes])
    compressed = write_tar(tmp_path / "zipped.tar", {"1.mp4": b"one"}, mode="w:gz")
    for tar in (str(tmp_path / "cut.tar"), compressed):
        with pytest.raises(SourceError, match="wanted a plain one"):
            find_sources([tar])
