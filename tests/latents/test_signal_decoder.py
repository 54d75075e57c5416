"""The signal decoder: one trunk for sound and frames, and the folder it lies in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latents.errors import ModelError
from latents.models.autoencoder_files import (
    Autoencoder,
    AutoencoderConfig,
    fresh_autoencoder,
    load_signal_decoder,
    save_autoencoder,
    tiny_autoencoder_config,
)
from latents.models.encoder_blocks import draw_weights
from latents.models.modal_encoder_files import CONFIG_FILE, MODEL_FILE, load_modal_encoders
from latents.models.signal_decoder import SignalDecoder, SignalDecoderConfig

CONFIG = SignalDecoderConfig(
    latent_channels=3, out_channels=2, frames=5, channels=8, coarse_blocks=1, norm_groups=2
)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def decoder() -> SignalDecoder:
    """All of its layers are live."""
    decoder = SignalDecoder(CONFIG)
    draw_weights(decoder, key="signal decoder", start="live")
    return decoder.eval()


def small_config() -> AutoencoderConfig:
    return tiny_autoencoder_config(
        frames=4, video_size=8, audio_size=8, decoder_channels=8, coarse_blocks=1
    )


@pytest.fixture
def autoencoder() -> Autoencoder:
    autoencoder = fresh_autoencoder(small_config(), seed=1)
    draw_weights(autoencoder.signal_decoder, key="decoder", start="live")
    return autoencoder.eval()


@torch.no_grad()
def test_a_latent_becomes_every_frame_and_the_mel_image(decoder: SignalDecoder) -> None:
    assert decoder.decode_video(noise(2, 3, 4, 4)).shape == (2, 5, 2, 8, 8)
    assert decoder.decode_audio(noise(2, 3, 2, 2)).shape == (2, 2, 8, 8)


@torch.no_grad()
def test_frames_differ_and_all_come_from_the_latent(decoder: SignalDecoder) -> None:
    one, other = decoder.decode_video(noise(2, 3, 4, 4))
    assert all((one[k] - one[k + 1]).abs().max() > 1e-3 for k in range(4))
    assert all((one[k] - other[k]).abs().max() > 1e-3 for k in range(5))


def test_sound_and_frames_share_the_trunk(decoder: SignalDecoder) -> None:
    for decoded in (
        decoder.decode_video(noise(1, 3, 4, 4)),
        decoder.decode_audio(noise(1, 3, 2, 2)),
    ):
        decoder.zero_grad()
        decoded.square().mean().backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in decoder.trunk.parameters()]
        assert all(g is not None and g.abs().max() > 0 for g in gradients)


@torch.no_grad()
def test_decoding_undoes_the_whitening(decoder: SignalDecoder) -> None:
    decoder.video_whitening.copy_(torch.tensor([[1.0, 2.0], [-3.0, 0.5]]))
    decoder.audio_whitening.copy_(torch.tensor([[5.0, 3.0], [0.0, 4.0]]))
    z_v, z_a = noise(2, 3, 4, 4), noise(2, 3, 2, 2)
    # Products and sums of numbers below 32, in float32.
    tolerance = {"atol": 1e-5, "rtol": 0}
    frames, image = decoder.decode_video(z_v), decoder.decode_audio(z_a)
    torch.testing.assert_close(
        decoder.whiten_video(frames), decoder.whitened_video(z_v), **tolerance
    )
    torch.testing.assert_close(
        decoder.whiten_audio(image), decoder.whitened_audio(z_a), **tolerance
    )
    torch.testing.assert_close(frames[:, :, 1], decoder.whitened_video(z_v)[:, :, 1] / 2 - 3)


@torch.no_grad()
def test_a_window_is_decoded_by_itself(decoder: SignalDecoder) -> None:
    latents = noise(3, 3, 4, 4)
    beside, alone = decoder.decode_video(latents)[1], decoder.decode_video(latents[1:2])[0]
    # The order of float32 sums may differ with the batch.
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"channels": 9}, "do not divide"), ({"frames": 0}, "frames is 0"), ({"frames": True}, "is")],
)
def test_impossible_decoders_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    config = small_config()
    with pytest.raises(ValueError, match="differ in their windows"):
        replace(config, signal_decoder=replace(config.signal_decoder, frames=5))
    with pytest.raises(ValueError, match="differ in their numbers of channels"):
        replace(config, signal_decoder=replace(config.signal_decoder, latent_channels=8))
    with pytest.raises(ValueError, match=r"by \[4, 4\]"):
        replace(config, video_encoder=replace(config.video_encoder, multipliers=(1, 2, 2)))


def test_the_bundled_architecture_has_the_papers_latents_and_fits_8_megabytes() -> None:
    config = tiny_autoencoder_config()
    with torch.device("meta"):
        model = Autoencoder(config)
        moments = model.video_encoder(torch.zeros(1, 16, 4, 32, 32))
        sound = model.audio_encoder(torch.zeros(1, 4, 32, 32))
    assert (moments.shape[1:], sound.shape[1:]) == ((32, 16, 16), (32, 8, 8))
    in_float32 = sum(
        4 * parameter.numel()
        for encoder in (model.video_encoder, model.audio_encoder)
        for parameter in encoder.parameters()
    )
    in_float16 = sum(2 * parameter.numel() for parameter in model.signal_decoder.parameters())
    assert in_float32 + in_float16 < 8e6


def test_fresh_weights_are_a_function_of_the_seed() -> None:
    one, same, other = (fresh_autoencoder(small_config(), seed=s) for s in (3, 3, 4))
    weights = [model.signal_decoder.video_stem.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@torch.no_grad()
def test_a_saved_autoencoder_gives_its_encoders_and_its_decoder(
    autoencoder: Autoencoder, tmp_path: Path
) -> None:
    autoencoder.signal_decoder.video_whitening.normal_()
    save_autoencoder(tmp_path, autoencoder)
    encoders, decoder = load_modal_encoders(tmp_path), load_signal_decoder(tmp_path)
    window = noise(1, 4, 4, 8, 8)
    assert torch.equal(encoders.encode_video(window), autoencoder.video_encoder(window))
    wanted = autoencoder.signal_decoder
    assert torch.equal(decoder.video_whitening, wanted.video_whitening)
    for parameter in wanted.parameters():
        parameter.copy_(parameter.half())
    z_v, z_a = noise(1, 16, 4, 4), noise(1, 16, 2, 2)
    assert torch.equal(decoder.decode_video(z_v), wanted.decode_video(z_v))
    assert torch.equal(decoder.decode_audio(z_a), wanted.decode_audio(z_a))
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_weights_that_overflow_float16_are_not_saved(
    autoencoder: Autoencoder, tmp_path: Path
) -> None:
    with torch.no_grad():
        autoencoder.signal_decoder.video_stem.bias[0] = 1e6
    with pytest.raises(ModelError, match=r"not finite in float16, first .*video_stem\.bias"):
        save_autoencoder(tmp_path / "A", autoencoder)
    assert not (tmp_path / "A").exists()


def test_a_folder_without_a_decoder_is_named(autoencoder: Autoencoder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no config of a signal_decoder"):
        load_signal_decoder(tmp_path)
    save_autoencoder(tmp_path, autoencoder)
    tables = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**tables, "signal_decoder": {"depth": 1}}))
    with pytest.raises(ModelError, match=r"no config of a signal_decoder.*depth"):
        load_signal_decoder(tmp_path)


def test_weights_of_another_decoder_are_refused(autoencoder: Autoencoder, tmp_path: Path) -> None:
    save_autoencoder(tmp_path, autoencoder)
    tables = json.loads((tmp_path / CONFIG_FILE).read_text())
    tables["signal_decoder"]["channels"] = 16
    (tmp_path / CONFIG_FILE).write_text(json.dumps(tables))
    with pytest.raises(ModelError, match=r"no usable signal decoder.*size mismatch"):
        load_signal_decoder(tmp_path)
    (tmp_path / MODEL_FILE).write_bytes(b"")
    with pytest.raises(ModelError, match="no usable signal decoder"):
        load_signal_decoder(tmp_path)
