"""Remembers the identities of models, so that planning need not load and hash weights again.

A memo is trusted only while every file that was read is, to the file system, still the same one.
It is a shortcut alone: where it is damaged or cannot be written, identities are computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from latents.durable import replace_file
from latents.models.frozen_modal_encoders import ModalEncoderIdentity, ModalIdentity
from latents.models.identity_encoder import IDENTITY, IdentityEncoder
from latents.models.modal_encoder_files import load_modal_encoders, modal_encoder_files
from latents.recipe import Canonical, canonical_json, open_sealed_json, sealed_json, sha256_hex

if TYPE_CHECKING:
    from latents.models.kl_vae_identity import EncoderIdentity

_KL_VAE_SCHEME = "kl-vae 1"
_MODAL_SCHEME = "modal encoders 1"
"""Raised by hand when an identity is computed in another way from the same files."""
_RACY_NS = 2_000_000_000
"""A file changed twice within the resolution of its time stamps looks unchanged: 2 s on FAT."""


def kl_vae_identity(source: str, *, memo: Path | None = None) -> EncoderIdentity:
    """The identity of a KL-VAE, equal to that of the loaded model.

    Args:
        source: As `load_kl_vae` takes it, or ``identity`` for the encoder without weights.
        memo: Folder of what is remembered; by default ``~/.cache/mmldm/identities``.

    Raises:
        ModelError: See `load_kl_vae`.
    """
    if source == IDENTITY:
        return IdentityEncoder.identity
    # Here, not at the top: they bring diffusers, which the modal encoders do not need.
    from diffusers import __version__ as diffusers_version

    from latents.models.kl_vae import EncoderIdentity, load_kl_vae
    from latents.models.kl_vae_files import autoencoder_files

    specification = memoised_identity(
        autoencoder_files(source),
        lambda: load_kl_vae(source).identity.specification(),
        # Settings that a config leaves out are diffusers' to fill in.
        scheme=f"{_KL_VAE_SCHEME}, diffusers {diffusers_version}",
        memo=memo,
    )
    return EncoderIdentity.from_specification(specification)


def modal_identity(folder: str | Path, *, memo: Path | None = None) -> ModalIdentity:
    """The identities of an autoencoder's modal encoders, equal to those of the loaded ones.

    Args:
        folder: As `load_modal_encoders` takes it.
        memo: Folder of what is remembered; by default ``~/.cache/mmldm/identities``.

    Raises:
        ModelError: See `load_modal_encoders`.
    """

    def compute() -> dict[str, Canonical]:
        identity = load_modal_encoders(folder).identity
        return {
            "video": identity.video.specification(),
            "audio": identity.audio.specification(),
        }

    found = memoised_identity(modal_encoder_files(folder), compute, scheme=_MODAL_SCHEME, memo=memo)
    return ModalIdentity(
        video=ModalEncoderIdentity.from_specification(found["video"]),
        audio=ModalEncoderIdentity.from_specification(found["audio"]),
    )


def memoised_identity(
    files: Sequence[Path],
    compute: Callable[[], dict[str, Canonical]],
    *,
    scheme: str,
    memo: Path | None = None,
) -> dict[str, Any]:
    """What ``compute`` gives for these files, from the memo where they have not changed since.

    Files are compared by resolved path, size, inode, and times of modification and of change. What
    was modified less than 2 s before, or while it was read, is not remembered.

    Args:
        files: Every file that ``compute`` reads.
        compute: Loads the model; called only where nothing is remembered.
        scheme: How the identity is computed; another scheme shares nothing with this one.
        memo: Folder of what is remembered; by default ``~/.cache/mmldm/identities``.
    """
    started_ns = time.time_ns()
    try:
        state = _state(files)
        folder = memo or Path.home() / ".cache" / "mmldm" / "identities"
    except (OSError, RuntimeError):  # a file is missing, which `compute` will name; or no home is
        return compute()
    # Named by paths alone, so that a model trained again takes the place of the former.
    name = sha256_hex(canonical_json([one["path"] for one in state]))
    record = folder / f"{name}.json"
    remembered = _read(record)
    if remembered.get("files") == state and remembered.get("scheme") == scheme:
        return cast(dict[str, Any], remembered["identity"])
    identity = compute()
    # A file dated in the future is no more settled than one of just now.
    if all(one["mtime_ns"] + _RACY_NS < started_ns for one in state):
        with suppress(OSError):
            if _state(files) == state:
                content: dict[str, Any] = {"files": state, "scheme": scheme, "identity": identity}
                folder.mkdir(parents=True, exist_ok=True)
                replace_file(record, sealed_json(content))
    return identity


def _state(files: Sequence[Path]) -> list[dict[str, Any]]:
    """What changes when a file does, as far as the file system tells."""
    resolved = [path.resolve() for path in files]
    return [
        {
            "path": ascii(str(path)),  # names need not be UTF-8
            "size": status.st_size,
            "inode": status.st_ino,
            "mtime_ns": status.st_mtime_ns,
            # Programs can set the other time back, as unpacking an archive does, but not this one.
            "ctime_ns": status.st_ctime_ns,
        }
        for path, status in ((path, path.stat()) for path in resolved)
    ]


def _read(record: Path) -> dict[str, Any]:
    try:
        return open_sealed_json(record.read_bytes())
    except (OSError, ValueError):
        return {}
