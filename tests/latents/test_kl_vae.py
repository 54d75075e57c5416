"""The KL-VAE codes each picture by itself, knows what its latents depend on, and loads strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from latents.errors import ModelError
from latents.models import kl_vae_files
from latents.models.kl_vae import KLVAE, load_kl_vae
from latents.models.kl_vae_files import WEIGHTS_FILE, AutoencoderKL, save_autoencoder
from latents.models.tiny_kl_vae import build_tiny_autoencoder
from pipeline.scenes.catalogue import make_scene

BUNDLED = Path(kl_vae_files.__file__).parent / "tiny"


def small_autoencoder(seed: int = 0, **changes: Any) -> AutoencoderKL:
    """Random weights: 1/8 of the size, 4 channels, with attention and two layers a block."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "scaling_factor": 0.25,
    }
    return AutoencoderKL(**(settings | changes))


def noise_pictures(count: int, size: int = 32) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=rng)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Equal bytes are promised on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def vae() -> KLVAE:
    return KLVAE(small_autoencoder())


@pytest.fixture(scope="module")
def tiny() -> KLVAE:
    return load_kl_vae("tiny")


def test_moments_are_mean_then_log_variance(vae: KLVAE) -> None:
    pictures = noise_pictures(2)
    moments = vae.encode(pictures)
    posterior = vae.autoencoder.encode(pictures.float() / 127.5 - 1).latent_dist
    # Batches of one and of two may sum in another order.
    torch.testing.assert_close(moments[:, :4], posterior.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moments[:, 4:], posterior.logvar, atol=1e-5, rtol=1e-4)
    assert moments.shape == (2, 8, 4, 4)
    assert moments.dtype == torch.float32
    assert not moments.requires_grad


def test_log_variance_is_clamped_as_in_latent_diffusion(vae: KLVAE) -> None:
    vae.autoencoder.quant_conv.bias.data[4:6] = 1e3
    vae.autoencoder.quant_conv.bias.data[6:] = -1e3
    logvar = vae.encode(noise_pictures(1))[0, 4:]
    assert logvar[:2].unique().tolist() == [20.0]
    assert logvar[2:].unique().tolist() == [-30.0]


def test_latents_do_not_depend_on_the_neighbours(vae: KLVAE) -> None:
    pictures = noise_pictures(3)
    alone = torch.cat([vae.encode(picture[None]) for picture in pictures])
    assert torch.equal(vae.encode(pictures), alone)
    assert torch.equal(vae.encode(pictures.flip(0)).flip(0), alone)


def test_in_larger_batches_the_last_one_is_filled_up() -> None:
    vae = KLVAE(small_autoencoder(), batch_size=2)
    pictures = noise_pictures(3)
    together = vae.encode(pictures)
    assert torch.equal(vae.encode(pictures[:2]), together[:2])
    assert torch.equal(vae.encode(pictures[2:]), together[2:])


def test_memory_layout_of_the_pictures_does_not_matter(vae: KLVAE) -> None:
    pictures = noise_pictures(2)
    channels_last = pictures.contiguous(memory_format=torch.channels_last)
    assert torch.equal(vae.encode(channels_last), vae.encode(pictures))


def test_decoding_gives_pictures_of_raw_latents(vae: KLVAE) -> None:
    latents = vae.encode(noise_pictures(2))[:, :4]
    pictures = vae.decode(latents)
    expected = vae.autoencoder.decode(latents).sample.add(1).mul(127.5).round().clamp(0, 255)
    assert pictures.dtype == torch.uint8
    assert pictures.shape == (2, 3, 32, 32)
    # One grey level: a value within float rounding of a half may fall to either side.
    assert (pictures.float() - expected).abs().max() <= 1


def test_bf16_is_close_to_fp32(tiny: KLVAE) -> None:
    pictures = noise_pictures(1, size=64) // 4 + 96
    exact = tiny.encode(pictures)[:, :4]
    rough = load_kl_vae("tiny", precision="bf16").encode(pictures)[:, :4]
    # bfloat16 has 8 bits of mantissa; a few per cent of the standard deviation remain.
    assert (rough - exact).std() < 0.05 * exact.std()
    assert not torch.equal(rough, exact)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 32, 32),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 1, 32, 32, dtype=torch.uint8),
        torch.zeros(0, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 3, 32, 36, dtype=torch.uint8),
    ],
    ids=["float", "no batch", "grey", "empty", "not a multiple"],
)
def test_other_images_are_refused(vae: KLVAE, images: Tensor) -> None:
    with pytest.raises(ValueError, match="images"):
        vae.encode(images)


def test_latents_with_other_channels_are_refused(vae: KLVAE) -> None:
    with pytest.raises(ValueError, match=r"latents must be \(batch, 4"):
        vae.decode(torch.zeros(1, 8, 4, 4))


def test_properties_come_from_the_config(vae: KLVAE) -> None:
    assert (vae.latent_channels, vae.downsample, vae.scaling_factor) == (4, 8, 0.25)


def test_a_fine_tuned_decoder_does_not_change_the_identity() -> None:
    autoencoder = small_autoencoder()
    before = KLVAE(autoencoder).identity
    for name, parameter in autoencoder.named_parameters():
        if name.startswith(("decoder.", "post_quant_conv.")):
            parameter.data += 1
    assert KLVAE(autoencoder).identity == before


def shift_one_weight(autoencoder: AutoencoderKL) -> None:
    autoencoder.encoder.conv_in.bias.data[0] += 1e-3


def change_scaling_factor(autoencoder: AutoencoderKL) -> None:
    autoencoder.register_to_config(scaling_factor=0.5)  # type: ignore[no-untyped-call]


def change_shift_factor(autoencoder: AutoencoderKL) -> None:
    autoencoder.register_to_config(shift_factor=0.1)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("change", [shift_one_weight, change_scaling_factor, change_shift_factor])
def test_whatever_changes_latents_changes_the_identity(
    change: Callable[[AutoencoderKL], None],
) -> None:
    autoencoder = small_autoencoder()
    before = KLVAE(autoencoder).identity.specification()
    change(autoencoder)
    assert KLVAE(autoencoder).identity.specification() != before


def test_identity_does_not_depend_on_the_precision_it_runs_in() -> None:
    exact, rough = KLVAE(small_autoencoder()), KLVAE(small_autoencoder(), precision="bf16")
    assert rough.identity == exact.identity


def test_saving_and_loading_changes_nothing(vae: KLVAE, tmp_path: Path) -> None:
    save_autoencoder(vae.autoencoder, tmp_path)
    loaded = load_kl_vae(str(tmp_path))
    assert loaded.identity == vae.identity
    assert torch.equal(loaded.encode(noise_pictures(1)), vae.encode(noise_pictures(1)))


def test_half_precision_files_load_as_float32(vae: KLVAE, tmp_path: Path) -> None:
    save_autoencoder(vae.autoencoder, tmp_path, half=True)
    loaded = load_kl_vae(str(tmp_path))
    weight = vae.autoencoder.encoder.conv_in.weight
    assert load_file(tmp_path / WEIGHTS_FILE)["encoder.conv_in.weight"].dtype == torch.float16
    assert torch.equal(loaded.autoencoder.encoder.conv_in.weight, weight.half().float())


def test_weights_beyond_float16_are_not_saved_as_such(vae: KLVAE, tmp_path: Path) -> None:
    vae.autoencoder.encoder.conv_in.bias.data[0] = 1e5
    with pytest.raises(ModelError, match=r"encoder\.conv_in\.bias"):
        save_autoencoder(vae.autoencoder, tmp_path, half=True)


def test_the_vae_of_a_pipeline_folder_is_found(vae: KLVAE, tmp_path: Path) -> None:
    save_autoencoder(vae.autoencoder, tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    assert load_kl_vae(str(tmp_path)).identity == vae.identity


def test_attention_under_its_former_names_is_read(vae: KLVAE, tmp_path: Path) -> None:
    save_autoencoder(vae.autoencoder, tmp_path)
    renamed = {}
    for name, tensor in load_file(tmp_path / WEIGHTS_FILE).items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            name = name.replace(new, old)
        renamed[name.replace("to_out.0", "proj_attn")] = tensor
    save_file(renamed, tmp_path / WEIGHTS_FILE)
    assert load_kl_vae(str(tmp_path)).identity == vae.identity


def to_ldm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that CompVis/latent-diffusion gives the same weights (ldm/modules/diffusionmodules
    /model.py)."""
    renamed = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[1] in ("down_blocks", "up_blocks"):
            level = int(parts[2]) if parts[1] == "down_blocks" else 3 - int(parts[2])
            way = parts[1].removesuffix("_blocks")
            rest = (
                ["block", parts[4], *parts[5:]]
                if parts[3] == "resnets"
                else [f"{way}sample", *parts[5:]]
            )
            parts = [parts[0], way, str(level), *rest]
        elif parts[1] == "mid_block":
            index = int(parts[3])
            part = "attn_1" if parts[2] == "attentions" else f"block_{index + 1}"
            parts = [parts[0], "mid", part, *parts[4:]]
        new = ".".join(parts)
        for ours, theirs in (
            ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"),
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ):
            new = new.replace(ours, theirs)
        in_attention = "attn_1" in new and tensor.ndim == 2
        renamed[new] = tensor[:, :, None, None].contiguous() if in_attention else tensor
    return renamed


@pytest.fixture
def small_ldm(vae: KLVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """A checkpoint of kl-f8 in small, which is then what such files are expected to be."""
    save_autoencoder(vae.autoencoder, tmp_path / "reference")
    monkeypatch.setattr(kl_vae_files, "_LDM_CONFIG", tmp_path / "reference" / "config.json")
    return to_ldm_names(load_file(tmp_path / "reference" / WEIGHTS_FILE))


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_checkpoints_of_latent_diffusion_are_converted(
    vae: KLVAE, small_ldm: dict[str, Tensor], tmp_path: Path, prefix: str, suffix: str
) -> None:
    path = tmp_path / f"model{suffix}"
    tensors = {f"{prefix}{name}": tensor for name, tensor in small_ldm.items()}
    tensors["loss.discriminator.down.0.weight"] = torch.zeros(1)
    tensors["model.diffusion_model.input_blocks.0.weight"] = torch.zeros(1)
    if suffix == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 1}, path)
    else:
        save_file(tensors, path)
    loaded = load_kl_vae(str(path))
    latents = torch.zeros(1, 4, 4, 4)
    assert loaded.identity == vae.identity
    assert torch.equal(loaded.decode(latents), vae.decode(latents))


def test_a_checkpoint_with_a_missing_weight_is_refused(
    small_ldm: dict[str, Tensor], tmp_path: Path
) -> None:
    del small_ldm["decoder.conv_out.bias"]
    save_file(small_ldm, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"decoder\.conv_out\.bias"):
        load_kl_vae(str(tmp_path / "model.safetensors"))


def test_a_file_in_the_layout_of_diffusers_asks_for_its_folder(vae: KLVAE, tmp_path: Path) -> None:
    save_autoencoder(vae.autoencoder, tmp_path)
    with pytest.raises(ModelError, match="give its folder"):
        load_kl_vae(str(tmp_path / WEIGHTS_FILE))


def test_the_config_for_original_checkpoints_is_that_of_kl_f8() -> None:
    config = json.loads(kl_vae_files._LDM_CONFIG.read_text())
    with torch.device("meta"):
        autoencoder = AutoencoderKL.from_config(config)  # type: ignore[no-untyped-call]
    # The size that the model card of stabilityai/sd-vae-ft-mse gives: 83.7 million.
    assert sum(parameter.numel() for parameter in autoencoder.parameters()) == 83_653_863
    assert config["scaling_factor"] == 0.18215


def test_weights_that_do_not_fit_the_config_are_refused(vae: KLVAE, tmp_path: Path) -> None:
    save_autoencoder(vae.autoencoder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"latent_channels": 16}))
    with pytest.raises(ModelError, match="size mismatch for encoder"):
        load_kl_vae(str(tmp_path))


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ModelError, match=r"AutoencoderKL.*found config\.json"):
        load_kl_vae(str(tmp_path))


def test_a_folder_without_weights_is_refused(vae: KLVAE, tmp_path: Path) -> None:
    save_autoencoder(vae.autoencoder, tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(ModelError, match=r"wanted diffusion_pytorch_model\.safetensors"):
        load_kl_vae(str(tmp_path))


@pytest.mark.parametrize("source", ["nothing", "/no/such/folder", "some/model.ckpt", "a/b/c"])
def test_a_source_that_is_nowhere_is_named(source: str) -> None:
    with pytest.raises(ModelError, match=f"{source}: there is no such file"):
        load_kl_vae(source)


def test_a_hub_model_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(hub_id: str, *, allow_patterns: list[str]) -> str:
        raise OSError(f"cannot reach the hub for {hub_id}")

    monkeypatch.setattr(kl_vae_files, "snapshot_download", offline)
    with pytest.raises(ModelError, match="download the model elsewhere and give its folder"):
        load_kl_vae("stabilityai/sd-vae-ft-mse")


def test_a_hub_model_is_read_from_what_was_downloaded(
    vae: KLVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_autoencoder(vae.autoencoder, tmp_path / "vae")
    monkeypatch.setattr(kl_vae_files, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert load_kl_vae("organisation/name").identity == vae.identity


def test_the_tiny_model_starts_as_a_colour_codec() -> None:
    vae = KLVAE(build_tiny_autoencoder(0))
    level = torch.linspace(40, 220, 64)
    smooth = torch.stack(
        [level.expand(64, 64), level[:, None].expand(64, 64), level.flip(0).expand(64, 64)]
    )
    decoded = vae.decode(vae.encode(smooth.round().to(torch.uint8)[None])[:, :4])[0].float()
    inside = (slice(None), slice(16, -16), slice(16, -16))
    # GroupNorm bends the scale by 2 % at most, and upsampling shifts nothing.
    assert (decoded[inside] - smooth[inside]).abs().max() < 6


def test_the_bundled_model_is_small(tiny: KLVAE) -> None:
    with FlopCounterMode(display=False) as counter:
        tiny.encode(torch.zeros(1, 3, 256, 256, dtype=torch.uint8))
    assert (BUNDLED / WEIGHTS_FILE).stat().st_size <= 4_000_000
    assert counter.get_total_flops() <= 7e9


def test_the_bundled_model_codes_scenes_it_has_not_seen(tiny: KLVAE) -> None:
    frames = np.stack(
        [make_scene(3, index, seconds=4).frame(1, height=256, width=256) for index in (0, 6)]
    )
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
    decoded = tiny.decode(tiny.encode(pictures)[:, : tiny.latent_channels])
    error = (decoded.float() - pictures.float()).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(255**2 / error)).min() > 30


def test_bundled_latents_have_about_unit_variance(tiny: KLVAE) -> None:
    frames = np.stack(
        [make_scene(3, index, seconds=4).frame(1, height=128, width=128) for index in range(9)]
    )
    latents = tiny.encode(torch.from_numpy(frames).permute(0, 3, 1, 2))[:, : tiny.latent_channels]
    assert 0.5 < float((latents * tiny.scaling_factor).std()) < 2
