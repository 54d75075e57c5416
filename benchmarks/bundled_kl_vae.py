"""Measure the bundled KL-VAE: how faithful, how large, how costly.

Pictures are coded at 256x256 through the posterior mean. Scenes are of seeds that the model was
not trained on; real videos are read from a folder, four frames and two windows of sound each.

    python benchmarks/bundled_kl_vae.py --clips ../shared/clips/good
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from record import write_result
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from latents.mel import downmix, mel_spec, resample, window_image
from latents.models.kl_vae import KLVAE, load_kl_vae
from latents.models.kl_vae_files import WEIGHTS_FILE
from pipeline.scenes.catalogue import make_scene

SIZE = 256
HELD_OUT_SEED = 1_234_567
NUM_SCENES = 90
SCENE_SECONDS = 4.0
WINDOW_SECONDS = 1.6
MEL = mel_spec("hifigan22k")
FRAMES_PER_VIDEO = 4
WINDOWS_PER_VIDEO = 2
READ_SECONDS = 12.0
BUNDLED = Path(__file__).resolve().parents[1] / "latents" / "models" / "tiny"


def scene_pictures() -> tuple[list[Tensor], list[Tensor]]:
    """A frame and a mel image, uint8 (3, height, width), of each held-out scene."""
    frames, images = [], []
    for index in range(NUM_SCENES):
        rng = np.random.default_rng([HELD_OUT_SEED, index])
        scene = make_scene(HELD_OUT_SEED, index, seconds=SCENE_SECONDS)
        frame = scene.frame(rng.uniform(0, SCENE_SECONDS), height=SIZE, width=SIZE)
        frames.append(torch.from_numpy(frame).permute(2, 0, 1))
        sound = downmix(torch.from_numpy(scene.waveform(MEL.sample_rate)))
        start = rng.uniform(0, SCENE_SECONDS - WINDOW_SECONDS)
        images.append(window_image(cut_window(sound, start), MEL))
    return frames, images


def cut_window(sound: Tensor, start_seconds: float) -> Tensor:
    """The window of a mono waveform at the mel's rate that begins at a time."""
    start = round(start_seconds * MEL.sample_rate)
    return sound[start : start + round(WINDOW_SECONDS * MEL.sample_rate)].contiguous()


def video_frames(path: Path) -> Iterator[Tensor]:
    """Frames spread over the first seconds of a video, letterboxed, uint8 (3, height, width)."""
    pictures = []
    with av.open(str(path)) as container:
        first = None
        for count, frame in enumerate(container.decode(video=0)):
            first = first if first is not None else frame.time
            if frame.time is not None and first is not None and frame.time - first > READ_SECONDS:
                break
            if count % 8 == 0:
                pictures.append(Image.fromarray(frame.to_ndarray(format="rgb24")))
    for place in np.linspace(0, len(pictures) - 1, FRAMES_PER_VIDEO + 2)[1:-1]:
        yield letterbox(pictures[round(place)])


def letterbox(picture: Image.Image) -> Tensor:
    """Fit the longer side into the square and pad with black."""
    scale = SIZE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    square = Image.new("RGB", (SIZE, SIZE))
    fitted = picture.resize((width, height), Image.Resampling.BICUBIC)
    square.paste(fitted, ((SIZE - width) // 2, (SIZE - height) // 2))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def video_mel_images(path: Path) -> Iterator[Tensor]:
    """Mel images spread over the first seconds of a video's sound; none if it has none."""
    pieces: list[Tensor] = []
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return
        rate = container.streams.audio[0].rate
        resampler = av.AudioResampler(format="fltp")
        seconds = 0.0
        for frame in container.decode(audio=0):
            pieces += [torch.from_numpy(part.to_ndarray()) for part in resampler.resample(frame)]
            seconds += frame.samples / rate
            if seconds > READ_SECONDS:
                break
    if not pieces:
        return
    sound = resample(downmix(torch.cat(pieces, dim=1)), rate, MEL.sample_rate)
    room = len(sound) / MEL.sample_rate - WINDOW_SECONDS
    if room > 0:
        for place in np.linspace(0, room, WINDOWS_PER_VIDEO + 2)[1:-1]:
            yield window_image(cut_window(sound, place), MEL)


def fidelity(vae: KLVAE, pictures: list[Tensor]) -> dict[str, float | int]:
    """Mean and spread of the PSNR, in dB of 255, over pictures."""
    values = []
    for picture in pictures:
        decoded = vae.decode(vae.encode(picture[None])[:, : vae.latent_channels])[0]
        error = (decoded.double() - picture.double()).square().mean().item()
        values.append(10 * np.log10(255**2 / max(error, 1e-3)))
    return {
        "pictures": len(values),
        "psnr_mean_db": round(statistics.fmean(values), 2),
        "psnr_min_db": round(min(values), 2),
        "psnr_max_db": round(max(values), 2),
    }


def cost(vae: KLVAE) -> dict[str, float | int]:
    """Size, multiply-adds, and time of one picture on one thread."""
    picture = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    with FlopCounterMode(display=False) as encoding:
        moments = vae.encode(picture)
    with FlopCounterMode(display=False) as decoding:
        vae.decode(moments[:, : vae.latent_channels])
    return {
        "parameters": sum(p.numel() for p in vae.autoencoder.parameters()),
        "weights_bytes": (BUNDLED / WEIGHTS_FILE).stat().st_size,
        "encode_gmac": round(encoding.get_total_flops() / 2e9, 3),
        "decode_gmac": round(decoding.get_total_flops() / 2e9, 3),
        "encode_ms_fp32": best_encode_ms(vae),
        "encode_ms_bf16": best_encode_ms(load_kl_vae("tiny", precision="bf16")),
    }


def best_encode_ms(vae: KLVAE) -> float:
    """Fastest of ten encodings, in milliseconds."""
    picture = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        vae.encode(picture)
        times.append(time.perf_counter() - began)
    return round(min(times) * 1e3, 1)


def main() -> None:
    """Measure, and write benchmarks/results/bundled_kl_vae.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=Path, help="folder of real videos; left out if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    vae = load_kl_vae("tiny")
    frames, images = scene_pictures()
    quality = {"scene_frames": fidelity(vae, frames), "scene_mel_images": fidelity(vae, images)}
    if arguments.clips is not None:
        videos = sorted(path for path in arguments.clips.iterdir() if path.is_file())
        real_frames = [frame for path in videos for frame in video_frames(path)]
        real_images = [image for path in videos for image in video_mel_images(path)]
        quality["real_frames"] = {"videos": len(videos), **fidelity(vae, real_frames)}
        quality["real_mel_images"] = fidelity(vae, real_images)
    figures = {
        "encoder": vae.identity.specification(),
        "cost": cost(vae),
        "fidelity": quality,
    }
    write_result("bundled_kl_vae", figures, libraries=("torch", "diffusers"), as_line=False)


if __name__ == "__main__":
    main()
