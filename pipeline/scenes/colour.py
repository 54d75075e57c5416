"""Colours by perceived lightness, chroma and hue, so that random palettes stay harmonious."""

from __future__ import annotations

import math

Rgb = tuple[float, float, float]
"""sRGB (gamma encoded), each in [0, 1]."""


def oklch(lightness: float, chroma: float, hue_degrees: float) -> Rgb:
    """The sRGB colour of an Oklch triple, clipped to the gamut.

    Args:
        lightness: 0 (black) to 1 (white).
        chroma: 0 (grey) to about 0.3 (vivid).
        hue_degrees: About 30 red, 90 yellow, 145 green, 250 blue, 330 pink.

    Björn Ottosson, "A perceptual color space for image processing" (2020).
    """
    hue = math.radians(hue_degrees)
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _encode_gamma(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _encode_gamma(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _encode_gamma(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )


def vivid(hue_degrees: float, *, brightness: float = 0.0) -> Rgb:
    """A clear colour of a hue: yellows are lighter than blues, as they are in nature."""
    towards_yellow = max(0.0, math.cos(math.radians(hue_degrees - 95)))
    return oklch(0.64 + 0.17 * towards_yellow + 0.1 * brightness, 0.17, hue_degrees)


def blend(first: Rgb, second: Rgb, share: float) -> Rgb:
    """`first` at share 0, `second` at share 1, linear between."""
    return (
        first[0] + (second[0] - first[0]) * share,
        first[1] + (second[1] - first[1]) * share,
        first[2] + (second[2] - first[2]) * share,
    )


def _encode_gamma(linear: float) -> float:
    linear = min(max(linear, 0.0), 1.0)
    if linear <= 0.0031308:
        return 12.92 * linear
    return float(1.055 * linear ** (1 / 2.4) - 0.055)
