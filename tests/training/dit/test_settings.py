"""What a preset may say of the clips to train on."""

from __future__ import annotations

import math
from typing import Any

import pytest

from latents.config import build_dataclass
from latents.errors import ConfigError
from training.dit.settings import DataSettings


def settings(**values: Any) -> DataSettings:
    return build_dataclass(DataSettings, values, path="data.")


def test_silent_clips_are_kept_unless_a_preset_says_otherwise() -> None:
    assert (settings().silent, settings().silent_below_dbfs) == ("keep", -80)
    assert settings().audible_from_dbfs == -math.inf
    assert settings(silent_below_dbfs=-60).audible_from_dbfs == -math.inf


@pytest.mark.parametrize("limit", [-120, -80, 0])
def test_silent_clips_are_skipped_below_a_limit(limit: int) -> None:
    assert settings(silent="skip", silent_below_dbfs=limit).audible_from_dbfs == limit


@pytest.mark.parametrize("limit", [-121, 1])
def test_a_limit_that_no_sound_has_is_refused(limit: int) -> None:
    told = f"data.silent_below_dbfs is {limit}; it must be between -120 and 0"
    with pytest.raises(ConfigError, match=told):
        settings(silent_below_dbfs=limit)


def test_another_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.silent is 'drop'; wanted one of 'keep', 'skip'"):
        settings(silent="drop")
    with pytest.raises(ValueError, match=r"data\.silent is 'drop'; it must be 'keep' or 'skip'"):
        DataSettings(silent="drop")  # type: ignore[arg-type]  # what is refused


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_must_leave_something_to_train_on(share: float) -> None:
    with pytest.raises(ConfigError, match=f"validation_share is {share}; it must lie in"):
        settings(validation_share=share)
