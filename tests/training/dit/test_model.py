"""The diffusion transformer: how it starts, its tokens, its conditions and its precision."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training.diffusion.guidance import Denoise
from training.diffusion.pair import Latents
from training.diffusion.tasks import Condition, condition_for
from training.dit.config import DiTConfig
from training.dit.embedding import sin_cos_table
from training.dit.layers import Attention, Block, timestep_sinusoids
from training.dit.model import DiT

REPOSITORY = Path(__file__).resolve().parents[3]
SMALL = DiTConfig(
    depth=2,
    width=16,
    num_heads=2,
    context_tokens=3,
    context_width=8,
    latent_channels=4,
    video_size=4,
    audio_size=2,
)
HEAVY = (
    "ray",
    "decord",
    "av",
    "diffusers",
    "transformers",
    "librosa",
    "torchaudio",
    "PIL",
    "webdataset",
    "zarr",
)
YES, NO = True, False


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(config: DiTConfig = SMALL) -> DiT:
    return DiT(config, generator=seeded())


def awake(config: DiTConfig = SMALL) -> DiT:
    """A model none of whose parameters is zero."""
    model, generator = fresh(config), seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model


def latents(batch_size: int, seed: int = 2) -> Latents:
    generator = seeded(seed)
    return Latents(
        video=torch.randn(batch_size, *SMALL.video_shape, generator=generator),
        audio=torch.randn(batch_size, *SMALL.audio_shape, generator=generator),
    )


def timesteps(batch_size: int) -> Tensor:
    return torch.tensor([10, 500, 990])[:batch_size]


def given(
    *, video: list[bool], audio: list[bool] | None = None, context: list[bool] | None = None
) -> Condition:
    """Latents are at hand for every sample, and given to those asked for."""
    num = len(video)
    return Condition(
        has_video=torch.tensor(video),
        has_audio=torch.tensor(audio or [NO] * num),
        has_context=torch.tensor(context or [YES] * num),
        latents=latents(num, seed=3),
    )


def nothing_given(batch_size: int) -> Condition:
    return given(video=[NO] * batch_size)


def distance(ours: Latents, theirs: Latents, sample: int) -> float:
    """The largest change of either latent of a sample."""
    change = ours.map(torch.sub, theirs)
    return max(change.video[sample].abs().max().item(), change.audio[sample].abs().max().item())


def test_a_fresh_model_predicts_zero_for_every_task() -> None:
    condition = given(video=[NO, YES], audio=[YES, NO], context=[NO, YES])

    noise = fresh()(latents(2), timesteps(2), condition)

    assert torch.equal(noise.video, torch.zeros(2, 4, 4, 4))
    assert torch.equal(noise.audio, torch.zeros(2, 4, 2, 2))


def test_each_fresh_block_is_the_identity() -> None:
    generator = seeded()
    tokens = torch.randn(2, 25, 16, generator=generator)
    embedding = torch.randn(2, 16, generator=generator)

    for block in fresh().blocks:
        assert torch.equal(block(tokens, embedding), tokens)


def test_a_fresh_condition_adds_nothing_through_zero_convolutions() -> None:
    embedding = fresh().embedding

    known = embedding(latents(1), given(video=[YES], audio=[YES]))

    assert torch.equal(known, embedding(latents(1), nothing_given(1)))


def test_parameters_start_as_they_should() -> None:
    config = replace(SMALL, width=256, video_size=16, zero_condition=False)
    part = fresh(config).requires_grad_(False).embedding.video

    assert part.position.std().item() == pytest.approx(0.01, rel=0.05)
    assert part.eos.std().item() == pytest.approx(1, rel=0.2)
    assert part.condition.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 4), rel=0.1)
    assert part.noisy.weight.std().item() == pytest.approx(math.sqrt(2 / (4 + 256)), rel=0.1)


def test_equal_generators_give_equal_models_and_leave_torchs_own_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()

    one, other, third = fresh(), fresh(), DiT(SMALL, generator=seeded(9))

    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert not torch.equal(one.embedding.context, third.embedding.context)


def test_without_a_generator_torchs_seed_decides() -> None:
    torch.manual_seed(5)
    one = DiT(SMALL)
    torch.manual_seed(5)
    other = DiT(SMALL)

    assert torch.equal(one.embedding.context, other.embedding.context)


@pytest.mark.parametrize("zero_condition", [True, False])
def test_no_parameter_is_dead(zero_condition: bool) -> None:
    model = fresh(replace(SMALL, zero_condition=zero_condition))
    start = {name: value.clone() for name, value in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    condition = given(video=[NO, YES], audio=[YES, NO], context=[NO, YES])

    for _ in range(5):  # zeros wake from the last layer to the first
        errors = model(latents(2), timesteps(2), condition).map(torch.sub, latents(2, seed=7))
        loss: Tensor = errors.video.square().mean()
        optimiser.zero_grad()
        (loss + errors.audio.square().mean()).backward()
        optimiser.step()

    for name, value in model.named_parameters():
        assert not torch.equal(value, start[name]), name


def test_tokens_are_context_eos_audio_eos_video() -> None:
    embedding = awake().embedding

    tokens = embedding(latents(2), nothing_given(2))

    assert tokens.shape == (2, 3 + 1 + 4 + 1 + 16, 16)
    # Products of different batch sizes may differ in the last bits.
    torch.testing.assert_close(tokens[1, :3], embedding.context_projection(embedding.context))
    assert torch.equal(tokens[1, 3], embedding.audio.eos)
    assert torch.equal(tokens[1, 8], embedding.video.eos)


@pytest.mark.parametrize(("row", "column"), [(0, 1), (2, 0), (3, 2)])
def test_a_video_position_is_one_token_in_raster_order(row: int, column: int) -> None:
    embedding, changed = awake().embedding, latents(1)
    changed.video[0, :, row, column] += 1

    before = embedding(latents(1), nothing_given(1))
    after = embedding(changed, nothing_given(1))

    moved = (before != after).any(dim=2)[0].nonzero().flatten().tolist()
    assert moved == [9 + 4 * row + column]


def test_a_video_token_is_the_sum_of_its_parts() -> None:
    embedding, condition = awake().embedding, given(video=[YES])
    part = embedding.video

    tokens = embedding(latents(1), condition)

    expected = (
        part.noisy(latents(1).video[0, :, 2, 1])
        + part.condition(condition.latents.video[0, :, 2, 1])
        + part.position[9]
        + sin_cos_table(4, width=16)[9]
    )
    torch.testing.assert_close(tokens[0, SMALL.video_tokens][9], expected)


def test_a_prediction_comes_from_its_own_modality_and_position() -> None:
    model, changed = fresh(), latents(1)
    changed.video[0, :, 2, 1] += 1
    with torch.no_grad():
        model.final_video.out.weight.normal_(generator=seeded())

    # Fresh blocks mix nothing, so only the changed position can move.
    before = model(latents(1), timesteps(1), nothing_given(1))
    after = model(changed, timesteps(1), nothing_given(1))

    moved = (before.video != after.video).any(dim=1)[0].nonzero().tolist()
    assert moved == [[2, 1]]
    assert torch.equal(after.audio, torch.zeros_like(after.audio))


def test_position_tables_are_sines_and_cosines_of_column_then_row() -> None:
    row, column = 2, 1

    table = sin_cos_table(3, width=8)

    # At the frequencies 10000^0 and 10000^(-1/2).
    of_column = [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]
    of_row = [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]
    assert table[3 * row + column].tolist() == pytest.approx([*of_column, *of_row], abs=1e-7)
    assert table.dtype == torch.float32


def test_timesteps_become_cosines_then_sines() -> None:
    sinusoids = timestep_sinusoids(torch.tensor([0, 7]))

    frequency = 10_000 ** (-64 / 128)
    assert sinusoids.shape == (2, 256)
    assert sinusoids[0].tolist() == [1.0] * 128 + [0.0] * 128
    assert float(sinusoids[1, 0]) == pytest.approx(math.cos(7), abs=1e-6)
    assert float(sinusoids[1, 64]) == pytest.approx(math.cos(7 * frequency), abs=1e-6)
    assert float(sinusoids[1, 128 + 64]) == pytest.approx(math.sin(7 * frequency), abs=1e-6)


def test_position_tables_are_not_saved() -> None:
    names = set(fresh().state_dict())

    assert names == {name for name, _ in fresh().named_parameters()}


def test_attention_is_the_softmax_of_scaled_products_within_each_head() -> None:
    attention = Attention(16, num_heads=2)
    attention.qkv.draw(seeded())
    attention.out.draw(seeded())
    tokens = torch.randn(1, 5, 16, generator=seeded(4))

    q, k, v = attention.qkv(tokens)[0].split(16, dim=1)
    heads = [
        torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(8), dim=1) @ v[:, part]
        for part in (slice(0, 8), slice(8, 16))
    ]
    expected = attention.out(torch.cat(heads, dim=1))
    torch.testing.assert_close(attention(tokens)[0], expected)


def test_a_block_is_modulated_in_six_parts() -> None:
    block = awake().blocks[0]
    assert isinstance(block, Block)
    tokens = torch.randn(1, 5, 16, generator=seeded(3))
    embedding = torch.randn(1, 16, generator=seeded(4))

    parts = block.modulation.linear(embedding * embedding.sigmoid()).split(16, dim=1)
    middle = tokens + parts[2] * block.attention(normal(tokens) * (1 + parts[1]) + parts[0])
    hidden = block.mlp.up(normal(middle) * (1 + parts[4]) + parts[3])
    gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    expected = middle + parts[5] * block.mlp.down(gelu)
    # float32, with sums of up to 64 products in another order
    torch.testing.assert_close(block(tokens, embedding), expected, atol=1e-5, rtol=1e-5)


def normal(tokens: Tensor) -> Tensor:
    variance, mean = torch.var_mean(tokens, dim=2, keepdim=True, correction=0)
    return (tokens - mean) / (variance + 1e-6).sqrt()


@pytest.mark.parametrize("changed", ["video", "audio", "timesteps"])
def test_every_input_reaches_both_predictions(changed: str) -> None:
    model, noisy, steps = awake(), latents(1), timesteps(1)
    before = model(noisy, steps, nothing_given(1))

    {"video": noisy.video, "audio": noisy.audio, "timesteps": steps}[changed].add_(1)
    after = model(noisy, steps, nothing_given(1))

    assert not torch.allclose(before.video, after.video, atol=1e-3)
    assert not torch.allclose(before.audio, after.audio, atol=1e-3)


def test_context_is_dropped_for_the_samples_asked_for_alone() -> None:
    model = awake()

    kept = model(latents(3), timesteps(3), nothing_given(3))
    dropped = model(latents(3), timesteps(3), given(video=[NO] * 3, context=[YES, NO, YES]))

    assert distance(kept, dropped, 0) == 0
    assert distance(kept, dropped, 1) > 1e-3
    assert distance(kept, dropped, 2) == 0


def test_dropped_context_is_zero_before_its_projection() -> None:
    embedding = awake().embedding

    tokens = embedding(latents(1), given(video=[NO], context=[NO]))

    assert torch.equal(tokens[0, :3], embedding.context_projection.bias.expand(3, -1))


@pytest.mark.parametrize("name", ["video", "audio"])
def test_a_condition_is_given_to_the_samples_asked_for_alone(name: str) -> None:
    model, null = awake(), nothing_given(2)
    condition = given(video=[NO, name == "video"], audio=[NO, name == "audio"])

    without = model(latents(2), timesteps(2), null)
    known = model(latents(2), timesteps(2), condition)

    assert distance(without, known, 0) == 0
    assert distance(without, known, 1) > 1e-3


def test_a_null_condition_adds_exactly_nothing() -> None:
    model = awake()

    before = model(latents(1), timesteps(1), nothing_given(1))
    with torch.no_grad():
        model.embedding.video.condition.bias.fill_(100)
        model.embedding.audio.condition.bias.fill_(100)
    after = model(latents(1), timesteps(1), nothing_given(1))

    assert distance(before, after, 0) == 0


def test_a_null_condition_is_not_a_condition_of_zeros() -> None:
    model = awake()
    null = nothing_given(1).without_latents()

    without = model(latents(1), timesteps(1), null)
    zeros = model(latents(1), timesteps(1), replace(null, has_video=torch.tensor([YES])))

    assert distance(without, zeros, 0) > 1e-3


def test_a_null_condition_of_the_papers_code_adds_the_bias() -> None:
    embedding = fresh(replace(SMALL, zero_condition=False)).embedding
    part = embedding.video

    tokens = embedding(latents(1), nothing_given(1))

    noise = part.noisy(latents(1).video[0, :, 0, 0])
    expected = noise + part.condition.bias + part.position[0] + part.sin_cos[0]
    assert part.condition.bias.abs().max().item() > 0.1
    torch.testing.assert_close(tokens[0, SMALL.video_tokens][0], expected)


@pytest.mark.parametrize("zero_condition", [True, False])
def test_the_latent_of_a_null_condition_is_not_read(zero_condition: bool) -> None:
    model = awake(replace(SMALL, zero_condition=zero_condition))
    null = nothing_given(1)
    unread = replace(null, latents=null.latents.map(lambda tensor: tensor * math.nan))

    before = model(latents(1), timesteps(1), null)
    after = model(latents(1), timesteps(1), unread)

    assert distance(before, after, 0) == 0


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    model = awake()
    condition = given(video=[NO, YES, YES], audio=[YES, NO, NO], context=[YES, YES, NO])
    middle = torch.tensor([NO, YES, NO])[:, None, None, None]
    mixed = latents(3).map(lambda ours, other: torch.where(middle, ours, other), latents(3, seed=8))

    before = model(latents(3), timesteps(3), condition)
    after = model(mixed, timesteps(3), replace(condition, has_audio=torch.tensor([NO, NO, YES])))

    assert distance(before, after, 0) > 1e-3
    assert distance(before, after, 1) == 0


def test_guidance_and_samplers_can_run_it() -> None:
    denoise: Denoise = awake()

    noise = denoise(latents(2), timesteps(2), condition_for("a2v", latents(2, seed=3)))

    assert noise.shapes == latents(1).shapes


def test_checkpointing_changes_no_gradient() -> None:
    plain, sparing = awake(), awake()
    sparing.checkpoint_activations = True

    for model in (plain, sparing):
        noise = model(latents(2), timesteps(2), given(video=[YES, NO]))
        (noise.video.square().mean() + noise.audio.square().mean()).backward()

    for one, other in zip(plain.parameters(), sparing.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_checkpointing_runs_each_block_again() -> None:
    model, runs = awake(), []
    model.checkpoint_activations = True
    block = model.blocks[0]
    assert isinstance(block, Block)
    block.attention.register_forward_hook(lambda *_: runs.append(1))

    model(latents(1), timesteps(1), nothing_given(1)).video.sum().backward()

    assert len(runs) == 2


def test_under_autocast_norms_modulation_and_output_stay_in_float32() -> None:
    model, dtypes = awake(), {}
    block = model.blocks[1]
    assert isinstance(block, Block)
    for name, module in {"modulation": block.modulation, "mlp": block.mlp, "block": block}.items():
        module.register_forward_hook(
            lambda _, inputs, output, name=name: dtypes.update(
                {name: (inputs[0].dtype, output.dtype)}
            )
        )
    exact = model(latents(2), timesteps(2), nothing_given(2))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(latents(2), timesteps(2), nothing_given(2))

    float32, bfloat16 = torch.float32, torch.bfloat16
    assert dtypes == {
        "modulation": (float32, float32),
        "mlp": (float32, bfloat16),
        "block": (float32, float32),
    }
    assert (rounded.video.dtype, rounded.audio.dtype) == (float32, float32)
    # bfloat16 keeps 8 bits: a few times 2^-8 of values of order one
    torch.testing.assert_close(rounded.video, exact.video, atol=0.05, rtol=0)


def test_latents_are_not_rounded_under_autocast() -> None:
    embedding, condition = awake().embedding, given(video=[YES], audio=[YES])
    exact = embedding(latents(1), condition)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = embedding(latents(1), condition)

    assert torch.equal(rounded[:, 3:], exact[:, 3:])
    assert not torch.equal(rounded[:, :3], exact[:, :3])


@pytest.mark.slow
def test_it_compiles_without_a_break_in_its_graph() -> None:
    model = awake()
    compiled = torch.compile(model, backend="eager", fullgraph=True)

    expected = model(latents(2), timesteps(2), nothing_given(2))
    found = compiled(latents(2), timesteps(2), nothing_given(2))

    assert distance(found, expected, 1) == 0


def test_shapes_that_do_not_fit_are_refused() -> None:
    model, noisy, steps, nothing = fresh(), latents(2), timesteps(2), nothing_given(2)
    swapped = Latents(video=noisy.audio, audio=noisy.video)
    one = nothing_given(1)

    with pytest.raises(ValueError, match=r"noisy.video has shape \(2, 4, 2, 2\); wanted \(2, 4, 4"):
        model(swapped, steps, nothing)
    with pytest.raises(ValueError, match=r"timesteps has shape \(1,\); wanted \(2,\)"):
        model(noisy, timesteps(1), nothing)
    with pytest.raises(ValueError, match=r"condition.has_audio has shape \(1,\); wanted \(2,\)"):
        model(noisy, steps, replace(nothing, has_audio=one.has_audio))
    with pytest.raises(ValueError, match=r"condition.latents.video has shape \(1, 4, 4, 4\)"):
        model(noisy, steps, replace(nothing, latents=one.latents))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 0}, "depth is 0; wanted an integer from 1"),
        ({"mlp_ratio": 4.0}, "mlp_ratio is 4.0; wanted an integer from 1"),
        ({"width": True}, "width is True; wanted an integer from 1"),
        ({"num_heads": 3}, "width is 16; wanted a multiple of 3 heads"),
        ({"width": 18}, "width is 18; wanted a multiple of 4"),
        ({"zero_condition": 1}, "zero_condition is 1; wanted true or false"),
    ],
)
def test_architectures_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **wrong)


def test_the_model_needs_no_package_of_the_pipeline() -> None:
    blocked = dict.fromkeys([*HEAVY, "latents", "pipeline"])
    block = f"import sys; sys.modules.update({blocked!r})"

    done = subprocess.run(
        [sys.executable, "-c", f"{block}; import training.dit.model, training.dit.describe"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
