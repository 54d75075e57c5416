"""A cache in a bucket: S3 and what speaks its protocol, Google Cloud Storage, Azure."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any

from latents.cache.bucket import Bucket, Patience
from latents.cache.local_copies import LocalCopies
from latents.cache.storage import StoredFile
from latents.durable import written_aside
from latents.errors import DamagedError
from latents.recipe import is_sha256_hex, sha256_hex

_PATIENCE = Patience()


def open_object_storage(
    url: str,
    *,
    local: Path | None = None,
    local_bytes: int = 64 * 2**30,
    patience: Patience = _PATIENCE,
) -> ObjectStorage:
    """The storage of a bucket, or of a prefix in one; nothing is asked of the server yet.

    Credentials and endpoint come from the environment variables of the cloud in question
    (``AWS_*``, ``GOOGLE_*``, ``AZURE_*``).

    Args:
        url: ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``, or
            ``memory://`` for one that is empty and lives as long as this object.
        local: Folder for fetched objects and for files being written; by default one below
            ``~/.cache/mmldm/objects``.
        local_bytes: Room that fetched objects may take there.
        patience: When a server counts as dead.

    Raises:
        CacheError: The URL is of another kind, or the environment does not set it up.
    """
    if local is None:
        digest = sha256_hex(url.rstrip("/").encode())
        local = Path.home() / ".cache" / "mmldm" / "objects" / digest[:16]
    return ObjectStorage(
        bucket=Bucket(url, patience),
        copies=LocalCopies(local, max_bytes=local_bytes),
        reopen=partial(
            open_object_storage, url, local=local, local_bytes=local_bytes, patience=patience
        ),
    )


class ObjectStorage:
    """See `latents.cache.storage.Storage`. Made by `open_object_storage`.

    It can be pickled. A forked process can only open what is on this machine already.

    Args:
        bucket: The objects.
        copies: Those that are on this machine.
        reopen: Makes an equal storage, in another process.
    """

    def __init__(
        self, *, bucket: Bucket, copies: LocalCopies, reopen: partial[ObjectStorage]
    ) -> None:
        self._bucket = bucket
        self._copies = copies
        self._reopen = reopen

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reopen, ()

    @property
    def url(self) -> str:
        """The URL, as given."""
        return self._bucket.url

    def read(self, name: str) -> bytes:
        """An object's content."""
        return self._bucket.get(_checked(name)).content

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        try:
            self._bucket.num_bytes(_checked(name))
        except FileNotFoundError:
            return False
        return True

    def list(self, folder: str) -> Iterator[StoredFile]:
        """Objects below a folder, fetched page by page while they are taken."""
        return self._bucket.list(_checked(folder) if folder else "")

    def create(self, name: str, content: bytes) -> bool:
        """Writes a new object; False where it exists.

        Also False where the answer was lost and there is another writer's object. What is made
        with `create` is not replaced, so ours never was there.
        """
        return self._bucket.put_if(_checked(name), content, expected=None) == "won"

    def replace(self, name: str, content: bytes) -> None:
        """Gives an object this content, whatever it had."""
        self._bucket.put(_checked(name), content)

    def swap(self, name: str, content: bytes, *, expected: bytes | None) -> bool:
        """Gives an object this content if it has the expected one.

        Raises:
            OSError: Also where the answer was lost and another writer has changed the object
                since: it may have had this content in between, and nobody can tell.
        """
        found = None
        if expected is not None:
            try:
                found = self._bucket.get(_checked(name))
            except FileNotFoundError:
                return False
            if found.content != expected:
                return False
        outcome = self._bucket.put_if(_checked(name), content, expected=found)
        if outcome == "unknown":
            raise OSError(
                f"{self.url}: the answer to writing {name} was lost, and another writer has "
                "changed it since; look at it, then run the same command again"
            )
        return outcome == "won"

    def delete(self, name: str) -> None:
        """Removes an object, and its copy on this machine; a missing one is no fault."""
        with suppress(FileNotFoundError):
            self._bucket.delete(_checked(name))
        self._copies.remove(name)

    def folder_aside(self) -> Path:
        """Beside the copies: a file that was uploaded only needs a new name."""
        return self._copies.folder_aside()

    def adopt(self, file: Path, name: str) -> None:
        """Uploads a finished file and keeps it as the local copy.

        A fault leaves the file where it is and no object, so that it can be tried again.
        """
        wanted = file.stat().st_size
        self._bucket.put(_checked(name), file)
        found = self._bucket.num_bytes(name)
        if found != wanted:
            raise OSError(f"{self.url}: {name} has {found} bytes after uploading {wanted}")
        if _digest_in(name):
            self._copies.keep(file, name).close()
        else:  # it may be replaced, and the copy would be taken for it
            file.unlink()

    def open(self, name: str) -> FileIO:
        """An object opened for reading; one named by its SHA-256 is fetched once.

        Raises:
            DamagedError: The object is not what its name says. Nothing of it is kept.
        """
        digest = _digest_in(_checked(name))
        if digest is None:
            return self._fetch_for_now(name)
        copy = self._copies.open(name)
        if copy is None:
            with self._copies.locked(name):
                copy = self._copies.open(name) or self._fetch(name, digest)
        return copy

    def free_bytes(self) -> int | None:
        """None: a bucket has no bound."""
        return None

    def _fetch(self, name: str, digest: str) -> FileIO:
        found = hashlib.sha256()
        with written_aside(self.folder_aside()) as (file, aside):
            for piece in self._bucket.pieces(name):
                file.write(piece)
                found.update(piece)
            if found.hexdigest() != digest:
                raise DamagedError(
                    name,
                    0,
                    f"the object at {self.url} hashes to {found.hexdigest()[:12]}, not to its name",
                )
            file.flush()
            # The copy is trusted from now on: losing power must not cut it short.
            os.fsync(file.fileno())
            return self._copies.keep(aside, name)

    def _fetch_for_now(self, name: str) -> FileIO:
        """An object that may be replaced: the copy has no name, and goes when it is closed."""
        content = self._bucket.get(name).content
        with written_aside(self.folder_aside()) as (file, aside):
            file.write(content)
            file.flush()
            return aside.open("rb", buffering=0)


def _checked(name: str) -> str:
    """A name that stays below its folder on any disk; raises `ValueError` on others."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise ValueError(f"{name!r} is no name of a file in a cache, such as 'rows/a.parquet'")
    return name


def _digest_in(name: str) -> str | None:
    """The SHA-256 that an object is named by; None where it has another name."""
    stem = PurePosixPath(name).stem
    return stem if is_sha256_hex(stem) else None
