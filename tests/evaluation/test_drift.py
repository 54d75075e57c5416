"""``mmldm cache diff``: distances of two refs' latents against values worked out by hand."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import evaluation.cli
from evaluation.drift.compare import Drift, RefPair
from evaluation.drift.pictures import CompareDecodings, DecodedDrift
from evaluation.drift.posteriors import PosteriorDrift, posterior_drift
from evaluation.drift.probes import evenly_spaced
from evaluation.drift.text import drift_lines
from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.refs import Ref, write_recipes, write_ref
from latents.cache.rows import rows_to_table
from latents.clip import ClipKey, ClipSpec, WindowSpec
from latents.errors import CacheError, ConfigError, ModelError
from latents.mel import mel_spec
from latents.models.kl_vae import EncoderIdentity, load_kl_vae
from latents.recipe import Recipe, sha256_hex
from latents.store.tar_store import TarShardWriter
from latents.testing import FakeClip, fake_latent_row, fake_recipes, make_cache
from pipeline.recipes import kl_recipes
from pipeline.settings import IngestSettings
from pipeline.sound_images import mel_images

Tensors = Mapping[str, NDArray[Any]]

OLD, NEW = fake_recipes(weights="old"), fake_recipes(weights="new")


def fake_clip(number: int, tensors: Tensors) -> FakeClip:
    key = ClipKey(source_digest=sha256_hex(f"{number}".encode()), start_frame=0, fps=10)
    return FakeClip(key=key, tensors=tensors)


def moments(mean: Any, logvar: Any = 0.0, *, shape: Sequence[int] = (8, 2, 2, 2)) -> NDArray[Any]:
    """A posterior of these means and log-variances, which are broadcast to a shape."""
    parts = [np.broadcast_to(np.asarray(part), shape) for part in (mean, logvar)]
    return np.concatenate(parts, axis=1).astype(np.float16)


def commit(
    layout: CacheLayout,
    ref: str,
    clips: Sequence[FakeClip],
    recipes: Mapping[str, Recipe],
    **row_values: Any,
) -> None:
    """Commits clips, of whatever level, and points a ref at them."""
    write_recipes(layout, recipes.values())
    writer = TarShardWriter(layout.storage)
    for clip in clips:
        writer.add(str(clip.key), clip.tensors)
    stored = writer.seal()
    # The sums of a row are of a latent; here they stand for nothing.
    plain = replace(clips[0], tensors=dict.fromkeys(recipes, moments(0)))
    rows = [
        replace(
            fake_latent_row(
                replace(plain, key=clip.key), field, recipes[field], stored[str(clip.key), field]
            ),
            **row_values,
        )
        for clip in clips
        for field in clip.tensors
    ]
    CommitLog(layout).append({"latents": rows_to_table("latents", rows)}, {})
    digests = {field: recipe.digest for field, recipe in recipes.items()}
    write_ref(layout, ref, Ref(commit=CommitLog(layout).head(), recipes=digests))


def two_refs(root: Path, before: Sequence[Tensors], after: Sequence[Tensors]) -> CacheLayout:
    """A cache whose clip k has ``before[k]`` in `previous` and ``after[k]`` in `current`."""
    layout = create_cache(root)
    for ref, recipes, tensors in (("previous", OLD, before), ("current", NEW, after)):
        clips = [fake_clip(number, of_clip) for number, of_clip in enumerate(tensors)]
        commit(layout, ref, clips, {field: recipes[field] for field in tensors[0]})
    return layout


def drift_of(layout: CacheLayout, num_clips: int = 32, **options: Any) -> Drift:
    return RefPair(layout, "previous", "current", num_clips=num_clips).compare(**options)


def measured(before: NDArray[Any], after: NDArray[Any]) -> PosteriorDrift:
    return posterior_drift([("clip", before, after)])


def video(*tensors: NDArray[Any]) -> list[Tensors]:
    return [{"kl.video": tensor} for tensor in tensors]


def test_a_ref_is_no_distance_from_itself(tmp_path: Path) -> None:
    pair = RefPair(make_cache(tmp_path, num_clips=3), "current", "current", num_clips=32)

    drift = pair.compare()

    assert drift.num_clips_in_both == 3
    assert drift.fields.keys() == {"kl.video", "kl.audio"}
    for field in drift.fields.values():
        assert (field.num_clips_in_both, field.num_equal, field.num_probes) == (3, 3, 3)
        assert (field.num_clips_only_a, field.num_clips_only_b) == (0, 0)
        assert (field.differences, field.unmeasured, field.decoded) == ((), None, None)
        assert field.posterior is not None
        assert field.posterior.relative_l2 == field.posterior.worst_relative_l2 == 0
        assert field.posterior.kl_ab_nats_per_value == field.posterior.kl_ba_nats_per_value == 0
        assert [(c.shift_in_stds, c.std_ratio) for c in field.posterior.channels] == [(0, 1)] * 2


def test_means_moved_by_a_constant_cost_its_square_over_twice_the_variance() -> None:
    mean = np.arange(64).reshape(8, 2, 2, 2) / 16  # in float16 as in float64
    logvar = math.log(0.25)

    drift = measured(moments(mean, logvar), moments(mean + 0.5, logvar))

    variance = math.exp(np.float16(logvar))
    assert drift.num_values == 64
    assert drift.kl_ab_nats_per_value == pytest.approx(0.5**2 / (2 * variance))
    assert drift.kl_ba_nats_per_value == pytest.approx(0.5**2 / (2 * variance))
    assert drift.relative_l2 == pytest.approx(0.5 * 8 / math.sqrt((mean**2).sum()))
    for index, channel in enumerate(drift.channels):
        assert channel.shift_in_stds == pytest.approx(
            0.5 / math.sqrt(mean[:, index].var() + variance)
        )
        assert channel.std_ratio == pytest.approx(1)


def test_wider_posteriors_differ_by_the_direction_of_the_divergence() -> None:
    wider = float(np.float16(math.log(4)))

    drift = measured(moments(1.0, 0.0), moments(1.0, wider))

    assert drift.relative_l2 == 0
    assert drift.kl_ab_nats_per_value == pytest.approx((wider + math.exp(-wider) - 1) / 2)
    assert drift.kl_ba_nats_per_value == pytest.approx((math.exp(wider) - wider - 1) / 2)
    assert [channel.shift_in_stds for channel in drift.channels] == [0, 0]
    assert [channel.std_ratio for channel in drift.channels] == pytest.approx([2, 2], rel=1e-3)


def test_the_divergence_is_that_of_torch() -> None:
    generator = np.random.default_rng(0)
    before, after = (generator.normal(size=(5, 6, 4, 4)).astype(np.float16) for _ in range(2))

    def normal(tensor: NDArray[Any]) -> torch.distributions.Normal:
        mean, logvar = torch.from_numpy(tensor.astype(np.float64)).chunk(2, dim=1)
        return torch.distributions.Normal(mean, (logvar / 2).exp())

    wanted = torch.distributions.kl_divergence(normal(before), normal(after)).mean()
    assert measured(before, after).kl_ab_nats_per_value == pytest.approx(float(wanted))


def test_channels_are_told_apart() -> None:
    mean = np.array([3.0, -3.0]).reshape(1, 2, 1, 1)
    moved = mean + np.array([0.0, 2.0]).reshape(1, 2, 1, 1)

    first, second = measured(moments(mean), moments(moved)).channels

    assert (first.shift_in_stds, first.std_ratio) == (0, 1)
    assert (second.shift_in_stds, second.std_ratio) == (2, 1)


def test_a_channel_spreads_over_all_clips_however_long() -> None:
    low, high = (
        moments(mean, shape=shape) for mean, shape in ((0, (6, 1, 2, 2)), (4, (2, 1, 2, 2)))
    )
    still = moments(0, shape=(6, 1, 2, 2)), moments(0, shape=(2, 1, 2, 2))

    (channel,) = posterior_drift([("a", still[0], low), ("b", still[1], high)]).channels

    assert channel.shift_in_stds == pytest.approx(1)  # a quarter of all values moved by 4
    assert channel.std_ratio == pytest.approx(math.sqrt(3 + 1))  # 4**2 * 1/4 * 3/4, and 1


def test_distances_are_over_the_values_of_all_clips_and_the_farthest_is_named() -> None:
    near, far = moments(2.0), moments(1.0)

    drift = posterior_drift([("near", near, moments(2.5)), ("far", far, moments(2.0))])

    assert drift.relative_l2 == pytest.approx(math.sqrt((0.25 + 1) / (4 + 1)))
    assert (drift.worst_clip, drift.worst_relative_l2) == ("far", 1)
    assert drift.kl_ab_nats_per_value == pytest.approx((0.125 + 0.5) / 2)


def test_nothing_is_relative_to_means_of_zero() -> None:
    drift = measured(moments(0.0), moments(1.0))

    assert (drift.relative_l2, drift.worst_clip, drift.worst_relative_l2) == (None, None, None)
    assert drift.kl_ab_nats_per_value == 0.5


def test_another_encoder_is_named_by_the_parts_of_its_recipe(tmp_path: Path) -> None:
    layout = two_refs(tmp_path, video(moments(1)), video(moments(1)))

    field = drift_of(layout).fields["kl.video"]

    assert field.differences == ("kl.video kl_vae weights: old -> new",)
    assert (field.recipe_a, field.recipe_b) == (OLD["kl.video"].digest, NEW["kl.video"].digest)
    assert (field.num_clips_in_both, field.num_equal) == (1, 1)
    assert field.posterior is not None
    assert field.posterior.kl_ab_nats_per_value == 0


def test_each_ref_is_read_by_its_own_recipe(tmp_path: Path) -> None:
    layout = two_refs(tmp_path, video(moments(2), moments(2)), video(moments(3), moments(2)))

    field = drift_of(layout).fields["kl.video"]

    assert field.num_equal == 1
    assert field.posterior is not None
    assert field.posterior.relative_l2 == pytest.approx(math.sqrt((1 + 0) / (4 + 4)))
    assert field.posterior.worst_clip == str(fake_clip(0, {}).key)


def test_clips_and_fields_of_one_ref_only_are_named(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    one, two, three = (fake_clip(number, {"kl.video": moments(number)}) for number in (1, 2, 3))
    both = replace(two, tensors={**two.tensors, "kl.audio": moments(5)})
    commit(layout, "previous", [one, two], {"kl.video": OLD["kl.video"]})
    commit(layout, "current", [both, three], NEW)

    drift = drift_of(layout)

    assert drift.num_clips_in_both == 1
    assert (drift.a.only_clips, drift.b.only_clips) == ((str(one.key),), (str(three.key),))
    assert (drift.a.only_fields, drift.b.only_fields) == ((), ("kl.audio",))
    assert (drift.a.commit, drift.b.commit) == (0, 1)
    field = drift.fields["kl.video"]
    counts = field.num_clips_in_both, field.num_clips_only_a, field.num_clips_only_b
    assert counts == (1, 1, 1)


def test_probes_are_spread_evenly_over_the_sorted_keys(tmp_path: Path) -> None:
    layout = two_refs(tmp_path, video(*[moments(1)] * 9), video(*[moments(1)] * 9))
    read: list[list[str]] = []

    def decode(a: Any, b: Any) -> DecodedDrift:
        read.append([row.clip for row in a.probes])
        assert read[-1] == [row.clip for row in b.probes]
        raise RuntimeError

    pair = RefPair(layout, "previous", "current", num_clips=3)
    with pytest.raises(RuntimeError):
        pair.compare(decode=decode)

    keys = sorted(str(fake_clip(number, {}).key) for number in range(9))
    assert read == [[keys[1], keys[4], keys[7]]]
    assert pair.num_probes("kl") == 3
    assert pair.num_probes("clip") == 0


@pytest.mark.parametrize(
    ("length", "count", "wanted"), [(0, 4, []), (3, 4, [0, 1, 2]), (8, 4, [1, 3, 5, 7])]
)
def test_positions_are_spread_evenly(length: int, count: int, wanted: list[int]) -> None:
    assert evenly_spaced(length, count) == wanted


def test_latents_of_other_shapes_are_not_compared(tmp_path: Path) -> None:
    larger = moments(1, shape=(8, 2, 4, 4))
    layout = two_refs(tmp_path, video(moments(1)), video(larger))

    pair = RefPair(layout, "previous", "current", num_clips=32)
    field = pair.compare().fields["kl.video"]

    assert field.posterior is None
    assert pair.num_probes("kl") == 0
    assert (field.num_clips_in_both, field.num_probes) == (1, 0)
    assert field.unmeasured == (
        f"the shapes of clip {fake_clip(0, {}).key} differ: (8, 4, 2, 2); (8, 4, 4, 4)"
    )


def test_latents_of_other_windows_are_not_compared(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    clips = [fake_clip(0, {"kl.audio": moments(1, shape=(5, 2, 2, 2))})]
    commit(layout, "previous", clips, {"kl.audio": OLD["kl.audio"]})
    commit(layout, "current", clips, {"kl.audio": NEW["kl.audio"]}, window_stride=2, num_windows=3)

    field = drift_of(layout).fields["kl.audio"]

    assert field.posterior is None
    assert field.unmeasured is not None
    assert "differ: 5 of 4 frames, every 1 from frame 0; 3 of 4 frames, every 2" in field.unmeasured


def test_of_clips_themselves_only_the_bytes_are_compared(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    recipe = {"clip.video": OLD["kl.video"].parents[0]}
    frames = np.zeros((4, 3, 8, 8), np.uint8)
    commit(layout, "previous", [fake_clip(0, {"clip.video": frames})], recipe)
    write_ref(layout, "current", Ref(commit=0, recipes={"clip.video": recipe["clip.video"].digest}))

    field = drift_of(layout).fields["clip.video"]

    assert (field.num_clips_in_both, field.num_equal, field.posterior) == (1, 1, None)
    assert field.unmeasured == "a clip has no posterior; only its bytes are compared"


def test_refs_without_a_clip_in_common_are_refused(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    for number, (ref, recipes) in enumerate((("previous", OLD), ("current", NEW))):
        clips = [fake_clip(number, {"kl.video": moments(1)})]
        commit(layout, ref, clips, {"kl.video": recipes["kl.video"]})

    with pytest.raises(CacheError, match=r"'previous' has 1 clips of kl.video and 'current' has 1"):
        RefPair(layout, "previous", "current", num_clips=1)


def test_refs_without_a_field_in_common_are_refused(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    clip = fake_clip(0, {"kl.video": moments(1)})
    commit(layout, "previous", [clip], {"kl.video": OLD["kl.video"]})
    clip = fake_clip(0, {"kl.audio": moments(1)})
    commit(layout, "current", [clip], {"kl.audio": NEW["kl.audio"]})

    with pytest.raises(CacheError, match="no clip of a field in common"):
        RefPair(layout, "previous", "current", num_clips=1)


def test_an_unknown_ref_is_refused_with_those_there_are(tmp_path: Path) -> None:
    layout = two_refs(tmp_path, video(moments(1)), video(moments(1)))

    with pytest.raises(CacheError, match="no ref 'before'; it has current, previous"):
        RefPair(layout, "before", "current", num_clips=1)


class GreysOfMeans:
    """Decodes a latent (picture, channel, h, w) to its first channel, as large as itself."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :1].expand(-1, 3, -1, -1).to(torch.uint8)


def decode_with(weights: str, **options: Any) -> Callable[..., DecodedDrift]:
    return CompareDecodings(GreysOfMeans(), name="V", weights=weights, latent_channels=2, **options)


def decoded(layout: CacheLayout, decode: Callable[..., DecodedDrift]) -> DecodedDrift:
    found = drift_of(layout, decode=decode).fields["kl.video"].decoded
    assert found is not None
    return found


def test_both_decodings_are_set_beside_each_other_and_beside_the_clip(tmp_path: Path) -> None:
    layout = create_cache(tmp_path)
    brighter = np.arange(16).reshape(16, 1, 1, 1)
    frames = np.broadcast_to(98 + brighter, (16, 3, 2, 2)).astype(np.uint8)
    source = [fake_clip(0, {"clip.video": frames})]
    commit(layout, "clips", source, {"clip.video": OLD["kl.video"].parents[0]})
    for ref, recipes, grey in (("previous", OLD, 100), ("current", NEW, 101)):
        means = moments(grey + brighter, shape=(16, 2, 2, 2))
        clips = [fake_clip(0, {"kl.video": means})]
        commit(layout, ref, clips, {"kl.video": recipes["kl.video"]})

    found = decoded(layout, decode_with("old", anyway=True))

    assert found.num_pictures == 8
    assert found.psnr_db == pytest.approx(20 * math.log10(255))
    assert found.a.original_psnr_db == pytest.approx(20 * math.log10(255 / 2))
    assert found.b.original_psnr_db == pytest.approx(20 * math.log10(255 / 3))
    assert (found.a.absence, found.b.absence) == (None, None)


def test_pictures_of_equal_means_are_equal_and_of_each_clip_some_are_looked_at(
    tmp_path: Path,
) -> None:
    still = video(*[moments(100, shape=(20, 2, 2, 2))] * 3)
    num_done: list[int] = []

    found = decoded(
        two_refs(tmp_path, still, still),
        decode_with("old", anyway=True, on_clip=lambda: num_done.append(1)),
    )

    assert (found.num_pictures, found.psnr_db) == (3 * 8, 100)
    assert len(num_done) == 3
    assert found.a.original_psnr_db is None
    assert found.a.absence == "the clip level of these clips is not kept"


def test_latents_of_another_encoder_are_not_decoded_unless_told_to(tmp_path: Path) -> None:
    layout = two_refs(tmp_path, video(moments(100)), video(moments(101)))

    found = decoded(layout, decode_with("new"))

    assert found.psnr_db is None
    assert found.a.absence == (
        "it was encoded with weights old, and V has new; --decode-anyway decodes it all the same"
    )
    assert found.b.absence == "the clip level of these clips is not kept"


def test_a_kl_vae_that_made_neither_is_refused(tmp_path: Path) -> None:
    layout = two_refs(tmp_path, video(moments(100)), video(moments(101)))

    with pytest.raises(ModelError, match=r"has weights third, .* old in 'previous' and new in"):
        drift_of(layout, decode=decode_with("third"))


def test_latents_of_other_channels_cannot_be_decoded_at_all(tmp_path: Path) -> None:
    wide = video(moments(1, shape=(8, 3, 2, 2)))

    with pytest.raises(ModelError, match=r"of 2 channels, but those of kl.video have 3"):
        drift_of(two_refs(tmp_path, wide, wide), decode=decode_with("third", anyway=True))


def test_pictures_of_another_size_than_the_clips_are_not_set_beside_it(tmp_path: Path) -> None:
    layout = two_refs(tmp_path, video(moments(100)), video(moments(101)))
    source = [fake_clip(0, {"clip.video": np.zeros((8, 3, 4, 6), np.uint8)})]
    commit(layout, "clips", source, {"clip.video": OLD["kl.video"].parents[0]})
    head = CommitLog(layout).head()
    write_ref(layout, "previous", Ref(commit=head, recipes={"kl.video": OLD["kl.video"].digest}))

    found = decoded(layout, decode_with("old"))

    assert found.a.original_psnr_db is None
    assert found.a.absence == "the clips' pictures are 4x6, the decoded ones 2x2"


def test_sound_is_set_beside_the_mel_images_of_the_same_windows(tmp_path: Path) -> None:
    settings = IngestSettings(window=WindowSpec(frames=4, stride=1))
    identity = EncoderIdentity(
        config={}, scaling_factor=1.0, shift_factor=0.0, weights_digest="old"
    )
    recipes = kl_recipes(settings, identity)
    seconds = np.arange(16000 * 8 // 10) / 16000
    chirp = 0.5 * np.sin(2 * np.pi * (200 + 1500 * seconds) * seconds).astype(np.float32)[None]
    grid = settings.window.grid(0, 12)
    images = mel_images(
        chirp, sample_rate=16000, grid=grid, clip_spec=ClipSpec(), mel=mel_spec("hifigan22k")
    )

    class DrawsTheWindowThatTheMeanNumbers:
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return images[latents[:, 0, 0, 0].long()]

    layout = create_cache(tmp_path)
    parents = {"clip.audio": recipes["kl.audio"].parents[0]}
    commit(layout, "clips", [fake_clip(0, {"clip.audio": chirp})], parents, sample_rate=16000)
    numbers = np.arange(9).reshape(9, 1, 1, 1)
    clips = [fake_clip(0, {field: moments(numbers, shape=(9, 2, 2, 2)) for field in recipes})]
    commit(layout, "current", clips, recipes, window_frames=4, num_windows=9)
    decode = CompareDecodings(
        DrawsTheWindowThatTheMeanNumbers(), name="V", weights="old", latent_channels=2
    )

    drift = RefPair(layout, "current", "current", num_clips=1).compare(decode=decode)

    assert grid.num_windows == 9
    assert len({image.numpy().tobytes() for image in images}) == 9
    sound = drift.fields["kl.audio"].decoded
    assert sound is not None
    assert (sound.num_pictures, sound.psnr_db, sound.a.original_psnr_db) == (8, 100, 100)


def run_diff(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    evaluation.cli.add_cache_verbs(parser.add_subparsers())
    parsed = parser.parse_args(["diff", *map(str, arguments)])
    status: int = parsed.run(parsed)
    return status


def test_the_command_gives_the_figures_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = two_refs(tmp_path, video(moments(1)), video(moments(2)))

    assert run_diff("previous", "current", "--cache", tmp_path, "--json") == 0

    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(asdict(drift_of(layout))))


def test_the_command_tells_people_what_changed_and_by_how_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_refs(tmp_path, video(moments(1), moments(1)), video(moments(2)))

    assert run_diff("previous", "current", "--cache", tmp_path) == 0

    first, second = (str(fake_clip(number, {}).key) for number in (0, 1))
    assert capsys.readouterr().out.splitlines() == [
        "previous (commit 0) -> current (commit 1)",
        "1 clips in both",
        f"1 clips only in previous: {second}",
        f"kl.video  recipe {OLD['kl.video'].digest[:12]} -> {NEW['kl.video'].digest[:12]}",
        "  differs       kl.video kl_vae weights: old -> new",
        "  clips         1 in both, 0 of them with equal bytes; 1 only in previous, 0 only in "
        "current",
        "  measured      on 1 clips",
        f"  means         relative L2 1, at most 1 (clip {first})",
        "  posteriors    KL(previous || current) 0.5, KL(current || previous) 0.5 nats per value",
        "  channel mean  +1.000 +1.000  (moved by, in standard deviations of previous)",
        "  channel std   1.000 1.000  (times that of previous)",
    ]


def test_people_are_told_what_could_not_be_compared(tmp_path: Path) -> None:
    layout = two_refs(
        tmp_path, video(moments(0), moments(1, shape=(8, 2, 2, 4))), video(moments(1), moments(1))
    )
    lines = list(drift_lines(drift_of(layout)))
    assert any(line.startswith("  not measured  the shapes of clip") for line in lines)

    zeros = two_refs(tmp_path / "zeros", video(moments(0)), video(moments(1)))
    lines = list(drift_lines(drift_of(zeros, decode=decode_with("new"))))
    assert "  means         all zero in previous" in lines
    assert (
        "    current to the clips: none, since the clip level of these clips is not kept" in lines
    )
    assert any(line.startswith("    previous to the clips: none, since it was") for line in lines)


def test_the_command_decodes_with_the_kl_vae_it_is_given(
    tmp_path: Path,
    small_kl_vae: Path,
    other_kl_vae: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    layout = create_cache(tmp_path)
    weights = load_kl_vae(str(small_kl_vae)).identity.weights_digest
    for ref, recipes, mean in (
        ("previous", fake_recipes(weights=weights), 0.0),
        ("current", NEW, 2.0),
    ):
        clips = [fake_clip(0, {"kl.video": moments(mean, shape=(8, 4, 2, 2))})]
        commit(layout, ref, clips, {"kl.video": recipes["kl.video"]})
    arguments = ("previous", "current", "--cache", tmp_path, "--json", "--kl-vae")

    run_diff(*arguments, small_kl_vae)
    fitting = json.loads(capsys.readouterr().out)["fields"]["kl.video"]["decoded"]
    run_diff(*arguments, other_kl_vae, "--decode-anyway")
    anyway = json.loads(capsys.readouterr().out)["fields"]["kl.video"]["decoded"]

    assert fitting["psnr_db"] is None
    assert "encoded with weights new" in fitting["b"]["absence"]
    assert fitting["num_pictures"] == 8
    assert 0 < anyway["psnr_db"] < 100
    with pytest.raises(ModelError, match="one's latents mean nothing"):
        run_diff(*arguments, other_kl_vae)


def test_decoding_anyway_needs_something_to_decode_with(tmp_path: Path) -> None:
    two_refs(tmp_path, video(moments(1)), video(moments(1)))

    with pytest.raises(ConfigError, match="name one with --kl-vae"):
        run_diff("previous", "current", "--cache", tmp_path, "--decode-anyway")
