"""How well a trained DiT denoises the latents of a cache that it never saw."""

from __future__ import annotations

from latents.cache.reader import CachedLevel, require_recipe
from latents.cache.resident import ResidentWindows
from training.dit.batches import WindowBatches
from training.dit.files import TrainedDiT
from training.dit.settings import ValidationSettings
from training.dit.validation import Validation, Validator

_SEED = 0


def measure_dit(
    trained: TrainedDiT, level: CachedLevel, settings: ValidationSettings
) -> Validation:
    """The losses of a trained DiT on all clips of a level, whitened as in its training.

    Args:
        trained: On the device where it is to run.
        level: ``perceptual``, opened.
        settings: How many windows, and how often each.

    Raises:
        StaleFieldError: The latents were made by other recipes than those it was trained on.
        DamagedError: A tensor is not what was written.
        ValueError: The level has no clips.
    """
    for field, recipe in trained.trained_on.recipes.items():
        require_recipe(level.layout, field, level.recipes, recipe)
    batches = WindowBatches(
        windows=ResidentWindows(level, level.clips),
        whitening=trained.whitening,
        draw="mode",
        seed=_SEED,
    )
    device = next(trained.model.parameters()).device
    validator = Validator(batches, trained.schedule.to(device), settings, device=device)
    return validator.validate(trained.model.eval())
