"""Record what the golden videos decode and encode to, and the identity of fixed settings.

    python scripts/make_golden.py

The tests compare with what is recorded in ``tests/golden``. Run this when a difference that they
found is meant; the new figures are then part of the change. Videos that are there are kept: after
an upgrade it must be the same files that are decoded. Delete one to have it encoded anew.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_observations import (
    BACKENDS,
    GOLDEN_FOLDER,
    decode_golden,
    decode_versions,
    describe_frames,
    describe_waveform,
    encode_versions,
    identity_of,
    mel_image,
    thin_frames,
    thin_image,
    thin_waveform,
    tiny_moments,
)
from golden_videos import GOLDEN_VIDEOS, LOSSLESS_CODECS, write_golden_video
from numpy.typing import NDArray
from safetensors.numpy import save

from latents.durable import replace_file
from latents.models.frozen_modal_encoders import ModalEncoderIdentity, ModalIdentity
from latents.models.kl_vae import EncoderIdentity, load_kl_vae
from latents.recipe import Canonical, canonical_json, sha256_hex
from pipeline.recipes import Encoders
from pipeline.scene_clips import SceneRef, scene_digest
from pipeline.settings import MEL_NAMES

MODAL = ModalIdentity(
    video=ModalEncoderIdentity(config={"channels": 320, "frames": 16}, weights_digest="6" * 64),
    audio=ModalEncoderIdentity(config={"channels": 320}, weights_digest="7" * 64),
)
ENCODERS = Encoders(
    kl_vae=EncoderIdentity(
        config={"block_out_channels": [128, 256, 512, 512], "latent_channels": 4},
        scaling_factor=0.18215,
        shift_factor=0.0,
        weights_digest="5" * 64,
    ),
    modal=MODAL,
)
"""Encoders that stay the same when the bundled ones are trained anew."""
CASES: dict[str, tuple[list[str], list[str]]] = {
    "default": ([], []),
    "paper": (["paper"], []),
    "audioset": (["audioset"], []),
    **{f"mel.name={name}": ([], [f"mel.name={name}"]) for name in MEL_NAMES},
    "window.stride=1": ([], ["window.stride=1"]),
    "decode.backend=pyav": ([], ["decode.backend=pyav"]),
}
"""Presets and overrides, by name."""
NESTED: dict[str, Canonical] = {
    "b": [1, True, None, [], {"": -(2**70)}],
    "a": 'é ∆ "quoted"\n\t\\',
    "Z": {"ä": {}, "10": 0, "9": False},
}
SCENE = SceneRef(seed=3, index=5, seconds=2.5)

_log = logging.getLogger("make_golden")


def main() -> None:
    """Write the videos that are missing, then all records."""
    parser = argparse.ArgumentParser(description="Record what the golden tests compare with.")
    parser.add_argument("--out", type=Path, default=GOLDEN_FOLDER, metavar="FOLDER")
    out: Path = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if "decord" not in BACKENDS:
        parser.error("the records hold both decoders; run it on x86_64, where decord exists")
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for video in GOLDEN_VIDEOS:
        if not (out / video.name).exists():
            write_golden_video(video, out / video.name)
            _log.info("encoded %s", video.name)
    record_decoding(out)
    record_encoding(out)
    _write_json(out / "recipes.json", identities())
    _log.info("recorded %s", out)


def record_decoding(out: Path) -> None:
    """Write ``decode.json``, and thinned pictures and sound in ``decode.safetensors``."""
    videos: dict[str, Any] = {}
    thinned: dict[str, NDArray[Any]] = {}
    for video in GOLDEN_VIDEOS:
        path = out / video.name
        clips = {backend: decode_golden(path, backend) for backend in BACKENDS}
        videos[video.name] = {
            "file": sha256_hex(path.read_bytes()),
            "frames": {backend: describe_frames(clip) for backend, clip in clips.items()},
            # PyAV decodes the sound beside the pictures of either.
            "waveform": describe_waveform(clips["pyav"]),
            "is_lossless_sound": video.audio_codec in LOSSLESS_CODECS,
        }
        for backend, clip in clips.items():
            thinned[f"{video.name}/frames/{backend}"] = thin_frames(clip.frames)
        thinned[f"{video.name}/waveform"] = thin_waveform(clips["pyav"].waveform)
    versions = {"decoded_with": decode_versions(), "encoded_with": encode_versions()}
    _write_json(out / "decode.json", {**versions, "videos": videos})
    replace_file(out / "decode.safetensors", save(thinned))


def record_encoding(out: Path) -> None:
    """Write thinned mel images and the moments of two pictures to ``encode.safetensors``."""
    tensors: dict[str, NDArray[Any]] = {
        f"mel/{name}": thin_image(mel_image(name, out)) for name in MEL_NAMES
    }
    for name, moments in tiny_moments(out).items():
        tensors[f"moments/{name}"] = moments.astype(np.float16)
    replace_file(out / "encode.safetensors", save(tensors))


def identities() -> dict[str, Any]:
    """The recipes of all cases, written out, and whatever else caches are known by."""
    recipes: dict[str, Any] = {}
    cases: dict[str, Any] = {}
    for name, (presets, overrides) in CASES.items():
        identity = identity_of(ENCODERS, presets=presets, overrides=overrides)
        cases[name] = {
            "presets": presets,
            "overrides": overrides,
            "recipes": {field: recipe.digest for field, recipe in identity.recipes.items()},
            "segmentation": identity.segmentation,
            "admission": identity.admission,
        }
        for recipe in identity.recipes.values():
            for ancestor in recipe.with_ancestors():
                recipes[ancestor.digest] = json.loads(ancestor.to_json())
    nested = canonical_json(NESTED)
    return {
        "encoders": {
            "kl_vae": ENCODERS.kl_vae.specification(),
            "video": MODAL.video.specification(),
            "audio": MODAL.audio.specification(),
        },
        "cases": cases,
        "recipes": recipes,
        "tiny": load_kl_vae("tiny").identity.specification(),
        "scene": {**asdict(SCENE), "digest": scene_digest(SCENE)},
        "canonical_json": {"value": NESTED, "text": nested.decode(), "sha256": sha256_hex(nested)},
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    replace_file(path, f"{text}\n".encode())


if __name__ == "__main__":
    main()
