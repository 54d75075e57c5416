"""Which device a name means."""

from __future__ import annotations

from latents.errors import ConfigError


def device_named(name: str, *, option: str) -> str:
    """The device that ``auto`` stands for, or the one named.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        option: What the user calls the option.

    Raises:
        ConfigError: It is no name of a device, or there is no such device here.
    """
    import torch  # not at the top: a command's help needs none

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ConfigError(f"{option} is {name!r}; wanted auto, cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{option} is {name}, but torch finds no GPU; use cpu")
    return name
