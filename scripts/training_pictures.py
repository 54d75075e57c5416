"""Pictures and sounds made from seeds, with the statistics of real ones but none of their content.

Pictures follow the dead-leaves model (A. B. Lee, D. Mumford and J. Huang, "Occlusion models for
natural images", 2001): things of every size, textured with 1/f noise, hide one another. Light,
focus, compression and black bars are those of video.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

CANVAS = 384
"""Side of the canvas; shrinking it to a picture antialiases the edges."""
_NUM_TEXTURES = 48


def draw_picture(rng: np.random.Generator, size: int) -> Pixels:
    """A picture with natural statistics, RGB (size, size, 3)."""
    canvas = _fill(rng, _palette(rng), detail=rng.uniform(0, 0.6))
    palette = [_palette(rng) for _ in range(rng.integers(2, 7))]
    kind = rng.random()
    if kind < 0.75:
        _drop_leaves(canvas, rng, palette, count=int(10 ** rng.uniform(0.8, 2.5)))
    if rng.random() < 0.35:
        _draw_strokes(canvas, rng, palette)
    if rng.random() < 0.2:
        _write_text(canvas, rng, palette)
    canvas *= np.exp(rng.uniform(0, 0.5) * _texture(rng, smooth=True))[..., None]
    picture = Image.fromarray(_to_pixels(canvas))
    picture = _focus(picture, rng)
    return _as_video_frame(picture, rng, size)


def _palette(rng: np.random.Generator) -> Floats:
    """A colour in [0, 1]: mostly muted, brown to blue more often than green to magenta."""
    luma = rng.beta(1.3, 1.5)
    warm, green = rng.normal(0, 0.1), rng.normal(0, 0.05)
    vivid = 3.0 if rng.random() < 0.15 else 1.0
    offset = np.array([warm - green, green, -warm - green]) * vivid
    return np.clip(luma + offset, 0.0, 1.0)


@lru_cache(maxsize=1)
def _textures() -> tuple[NDArray[np.float32], ...]:
    """Fields of unit variance with amplitude spectra 1/f^a, half of them oriented."""
    rng = np.random.default_rng(20)
    side = 2 * CANVAS
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    fields = []
    for index in range(_NUM_TEXTURES):
        exponent = (0.6, 1.0, 1.3, 1.7, 2.2, 3.0)[index % 6]
        angle, stretch = rng.uniform(0, math.pi), rng.choice([1.0, 1.0, 2.0, 5.0])
        along = (fx * math.cos(angle) + fy * math.sin(angle)) * stretch
        across = fy * math.cos(angle) - fx * math.sin(angle)
        radius = np.sqrt(along**2 + across**2 + (1.0 / side) ** 2)
        noise = rng.standard_normal(radius.shape) + 1j * rng.standard_normal(radius.shape)
        field = np.fft.irfft2(noise * radius**-exponent, s=(side, side))
        if index % 4 == 3:
            field = np.abs(field)
        field = (field - field.mean()) / field.std()
        fields.append(np.clip(field, -3, 3).astype(np.float32))
    return tuple(fields)


def _texture(rng: np.random.Generator, *, smooth: bool = False) -> NDArray[np.float32]:
    """A random piece (CANVAS, CANVAS) of a texture."""
    textures = _textures()
    index = int(rng.integers(len(textures)))
    if smooth:
        index = index // 6 * 6 + 5
    top, left = int(rng.integers(CANVAS)), int(rng.integers(CANVAS))
    return textures[index][top : top + CANVAS, left : left + CANVAS]


def _fill(rng: np.random.Generator, colour: Floats, *, detail: float) -> NDArray[np.float32]:
    """A textured surface (CANVAS, CANVAS, 3) around a colour, with a gradient across it."""
    y, x = np.mgrid[-1 : 1 : CANVAS * 1j, -1 : 1 : CANVAS * 1j].astype(np.float32)
    slope = rng.normal(0, 0.12, (2, 3)).astype(np.float32)
    common = rng.normal(0, 0.12, 2).astype(np.float32)
    surface = np.asarray(colour, np.float32) + x[..., None] * (slope[0] * 0.5 + common[0])
    surface += y[..., None] * (slope[1] * 0.5 + common[1])
    contrast = detail * rng.uniform(0.05, 0.45)
    surface += contrast * _texture(rng)[..., None]
    if rng.random() < 0.4:
        tint = np.asarray(_palette(rng) - colour, np.float32)
        surface += detail * 0.5 * _texture(rng)[..., None] * tint
    return surface.astype(np.float32)


def _drop_leaves(
    canvas: NDArray[np.float32], rng: np.random.Generator, palette: list[Floats], *, count: int
) -> None:
    """Cover the canvas with shapes whose radii follow a power law, largest first."""
    smallest, largest = 10 ** rng.uniform(0.6, 1.5), CANVAS / 2
    u = rng.random(count)
    radii = np.sort((u * largest**-1.5 + (1 - u) * smallest**-1.5) ** (-1 / 1.5))[::-1]
    surfaces = [_fill(rng, colour, detail=rng.uniform(0, 0.8)) for colour in palette]
    for radius in radii:
        surface = surfaces[int(rng.integers(len(surfaces)))]
        jitter = rng.normal(0, 0.08) + rng.normal(0, 0.03, 3)
        x, y = rng.uniform(-0.1 * CANVAS, 1.1 * CANVAS, 2)
        left, top = max(0, int(x - 2 * radius)), max(0, int(y - 2 * radius))
        right, bottom = min(CANVAS, int(x + 2 * radius) + 2), min(CANVAS, int(y + 2 * radius) + 2)
        if right <= left or bottom <= top:
            continue
        mask = Image.new("L", (right - left, bottom - top))
        _draw_shape(ImageDraw.Draw(mask), rng, x - left, y - top, radius)
        cover = np.asarray(mask, np.float32)[..., None] / 255
        region = (slice(top, bottom), slice(left, right))
        shifted = surface[region] + jitter.astype(np.float32)
        canvas[region] += cover * (shifted - canvas[region])


def _draw_shape(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, y: float, radius: float
) -> None:
    angle = rng.uniform(0, 2 * math.pi)
    kind = rng.random()
    corners = int(rng.integers(3, 7)) if kind < 0.5 else 24
    turns = np.sort(rng.uniform(0, 2 * math.pi, corners)) if kind < 0.5 else None
    theta = np.linspace(0, 2 * math.pi, corners, endpoint=False) if turns is None else turns
    reach = np.full(corners, radius)
    if kind > 0.75:
        wave = rng.integers(2, 6)
        reach = radius * (1 + 0.3 * np.sin(wave * theta + rng.uniform(0, 6)))
    squeeze = rng.uniform(0.15, 1.0)
    u, v = reach * np.cos(theta), reach * np.sin(theta) * squeeze
    xs = x + u * math.cos(angle) - v * math.sin(angle)
    ys = y + u * math.sin(angle) + v * math.cos(angle)
    pen.polygon(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=255)


def _draw_strokes(
    canvas: NDArray[np.float32], rng: np.random.Generator, palette: list[Floats]
) -> None:
    """Grass, hair, wires: many thin lines of similar direction."""
    picture = Image.fromarray(_to_pixels(canvas))
    pen = ImageDraw.Draw(picture)
    angle, spread = rng.uniform(0, math.pi), rng.uniform(0.02, 1.0)
    length = 10 ** rng.uniform(0.8, 2.3)
    for _ in range(int(10 ** rng.uniform(0.5, 2.5))):
        base = palette[int(rng.integers(len(palette)))] + rng.normal(0, 0.1)
        colour = tuple(int(c) for c in np.clip(base * 255, 0, 255))
        x, y = rng.uniform(0, CANVAS, 2)
        turn = angle + rng.normal(0, spread)
        bend = turn + rng.normal(0, 0.3)
        middle = (x + length * math.cos(turn), y + length * math.sin(turn))
        end = (middle[0] + length * math.cos(bend), middle[1] + length * math.sin(bend))
        pen.line([(x, y), middle, end], fill=colour, width=int(rng.integers(1, 5)))
    canvas[:] = np.asarray(picture, np.float32) / 255


def _write_text(
    canvas: NDArray[np.float32], rng: np.random.Generator, palette: list[Floats]
) -> None:
    picture = Image.fromarray(_to_pixels(canvas))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 6))):
        letters = "".join(chr(c) for c in rng.integers(33, 123, int(rng.integers(2, 24))))
        base = rng.choice([0.0, 1.0]) if rng.random() < 0.6 else palette[0]
        colour = tuple(int(c) for c in np.clip(np.broadcast_to(base, 3) * 255, 0, 255))
        font = ImageFont.load_default(size=float(10 ** rng.uniform(0.95, 1.9)))
        x, y = rng.uniform(-0.1 * CANVAS, 0.9 * CANVAS, 2)
        pen.text((x, y), letters, fill=colour, font=font)
    canvas[:] = np.asarray(picture, np.float32) / 255


def _focus(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur all, part or nothing of a picture."""
    kind = rng.random()
    if kind < 0.4:
        return picture
    blurred = picture.filter(ImageFilter.GaussianBlur(10 ** rng.uniform(-0.3, 0.9)))
    if kind < 0.65:
        return blurred
    edge = 255 / (1 + np.exp(-8 * _texture(rng, smooth=True)))
    return Image.composite(picture, blurred, Image.fromarray(edge.astype(np.uint8)))


def _as_video_frame(picture: Image.Image, rng: np.random.Generator, size: int) -> Pixels:
    """Grade, resize, compress and letterbox."""
    side = int(rng.integers(CANVAS // 2, CANVAS + 1))
    corner = int(rng.integers(0, CANVAS - side + 1))
    width, height = size, size
    if rng.random() < 0.4:
        bars = int(rng.integers(8, size // 4))
        width, height = (size, size - 2 * bars) if rng.random() < 0.75 else (size - 2 * bars, size)
    box = (corner, corner, corner + side * width // size, corner + side * height // size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
    if rng.random() < 0.12:
        picture = picture.convert("L").convert("RGB")
    pixels = np.asarray(picture, np.float64)
    if rng.random() < 0.25:
        gain, lift = rng.uniform(0.1, 1.3), rng.uniform(-20, 20)
        pixels = pixels * gain + lift
    if rng.random() < 0.25:
        pixels = pixels + rng.normal(0, 10 ** rng.uniform(0, 0.9), pixels.shape)
    picture = Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))
    if rng.random() < 0.6:
        coded = io.BytesIO()
        picture.save(coded, "JPEG", quality=int(rng.integers(25, 95)))
        picture = Image.open(coded)
    framed = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    framed[top : top + height, left : left + width] = np.asarray(picture)
    return framed


def _to_pixels(canvas: NDArray[np.float32]) -> Pixels:
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8)


def make_sound(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Floats:
    """Mono sound in [-1, 1]: one to four sources above a floor of noise, from faint to clipped."""
    time = np.arange(num_samples) / sample_rate
    sources = (_noise_bursts, _tones, _chirp, _voice, _clicks)
    sound = np.zeros(num_samples)
    for _ in range(int(rng.integers(1, 5))):
        source = sources[int(rng.integers(len(sources)))]
        one = source(rng, time, sample_rate)
        sound += one / max(1e-9, np.abs(one).max()) * 10 ** rng.uniform(-1.5, 0)
    floor = _coloured_noise(rng, num_samples, sample_rate) * 10 ** rng.uniform(-4.5, -1.2)
    sound = sound / max(1e-9, np.abs(sound).max()) * 10 ** rng.uniform(-2.2, 0.1) + floor
    return np.asarray(np.clip(sound, -1, 1))


def _coloured_noise(rng: np.random.Generator, num_samples: int, sample_rate: int) -> Floats:
    """Noise of unit variance with a power-law spectrum, at times within a band."""
    frequency = np.fft.rfftfreq(num_samples, 1 / sample_rate)
    gain = np.maximum(frequency, 20.0) ** -rng.uniform(0, 1.5)
    if rng.random() < 0.5:
        centre, width = 10 ** rng.uniform(2, 3.9), rng.uniform(0.2, 1.5)
        gain *= np.exp(-0.5 * (np.log(np.maximum(frequency, 1.0) / centre) / width) ** 2)
    shape = frequency.shape
    spectrum = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    noise = np.fft.irfft(spectrum * gain, num_samples)
    return np.asarray(noise / max(1e-12, noise.std()))


def _pulses(rng: np.random.Generator, time: Floats) -> Floats:
    """An envelope of fast attacks and exponential decays."""
    envelope = np.zeros_like(time)
    decay, attack = 10 ** rng.uniform(-2, 0.3), 10 ** rng.uniform(-3, -1)
    for start in rng.uniform(-0.2, time[-1], int(rng.integers(1, 9))):
        since = time - start
        rise = np.clip(since / attack, 0, 1)
        envelope += rng.uniform(0.2, 1) * rise * np.exp(-np.maximum(since, 0) / decay)
    return envelope


def _noise_bursts(rng: np.random.Generator, time: Floats, sample_rate: int) -> Floats:
    noise = _coloured_noise(rng, len(time), sample_rate)
    if rng.random() < 0.4:
        swell = np.sin(2 * np.pi * (rng.uniform(0.2, 6) * time + rng.random()))
        return noise * (1 + rng.uniform(0, 1) * swell)
    return noise * _pulses(rng, time)


def _tones(rng: np.random.Generator, time: Floats, sample_rate: int) -> Floats:
    """Chords of harmonic notes, struck one after another or held."""
    sound = np.zeros_like(time)
    for _ in range(int(rng.integers(1, 7))):
        pitch = 55 * 2 ** (rng.integers(0, 60) / 12)
        vibrato = rng.uniform(0, 0.01) * np.sin(2 * np.pi * rng.uniform(3, 7) * time)
        phase = 2 * np.pi * pitch * np.cumsum(1 + vibrato) / sample_rate
        tilt = rng.uniform(0.5, 2.5)
        count = min(24, int(0.45 * sample_rate / pitch))
        note = sum(k**-tilt * np.sin(k * phase + k) for k in range(1, count + 1))
        sound += note * (_pulses(rng, time) if rng.random() < 0.7 else 1.0)
    return sound


def _chirp(rng: np.random.Generator, time: Floats, sample_rate: int) -> Floats:
    low, high = 10 ** rng.uniform(2, 3.9, 2)
    sweep = (time / time[-1] * rng.uniform(0.5, 8) + rng.random()) % 1.0
    pitch = low * (high / low) ** (np.abs(2 * sweep - 1) if rng.random() < 0.5 else sweep)
    wave = np.sin(2 * np.pi * np.cumsum(pitch) / sample_rate)
    return wave * (_pulses(rng, time) if rng.random() < 0.5 else 1.0)


def _voice(rng: np.random.Generator, time: Floats, sample_rate: int) -> Floats:
    """Syllables: a glottal buzz or breath through three moving formants."""
    num_samples = len(time)
    knots = np.linspace(0, time[-1], int(rng.integers(4, 14)))
    speaker = 10 ** rng.uniform(1.95, 2.45)
    pitch = np.interp(time, knots, speaker * rng.uniform(0.8, 1.2, len(knots)))
    phase = np.cumsum(pitch) / sample_rate
    buzz = (phase % 1.0) ** 3 + 0.02 * rng.standard_normal(num_samples)
    loudness = np.interp(time, knots, rng.choice([0.0, 0.3, 1.0], len(knots)))
    frequency = np.fft.rfftfreq(1024, 1 / sample_rate)
    window = np.hanning(1024)
    voiced = np.zeros(num_samples + 1024)
    padded = np.concatenate([buzz - buzz.mean(), np.zeros(1024)])
    formants = 10 ** rng.uniform([2.45, 2.95, 3.35], [2.9, 3.35, 3.55], (len(knots), 3))
    for start in range(0, num_samples, 256):
        now = time[min(start + 512, num_samples - 1)]
        gain = sum(
            0.5**k / (1 + ((frequency - np.interp(now, knots, formants[:, k])) / 120) ** 2)
            for k in range(3)
        )
        spectrum = np.fft.rfft(padded[start : start + 1024] * window) * (gain + 0.003)
        voiced[start : start + 1024] += np.fft.irfft(spectrum) * window
    hiss = _coloured_noise(rng, num_samples, sample_rate) * 0.02
    return (voiced[:num_samples] + hiss * rng.random()) * loudness


def _clicks(rng: np.random.Generator, time: Floats, sample_rate: int) -> Floats:
    impulses = np.zeros_like(time)
    places = rng.integers(0, len(time), int(10 ** rng.uniform(0, 3)))
    impulses[places] = rng.standard_normal(len(places))
    ring = np.exp(-time / 10 ** rng.uniform(-3.5, -1)) * np.sin(
        2 * np.pi * 10 ** rng.uniform(2, 3.9) * time
    )
    size = 2 * len(time)
    rung: Floats = np.fft.irfft(np.fft.rfft(impulses, size) * np.fft.rfft(ring, size), size)
    return rung[: len(time)]
