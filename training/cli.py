"""``mmldm train``: models from cached data."""

from __future__ import annotations

import argparse

from training.cli_autoencoder import add_autoencoder
from training.cli_dit import add_dit
from training.cli_kl_vae import add_kl_vae

Commands = argparse._SubParsersAction


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Mounts ``train`` and the models it trains."""
    train = commands.add_parser("train", help="train a model from a cache")
    models = train.add_subparsers(dest="model", required=True, metavar="MODEL")
    add_kl_vae(models)
    add_autoencoder(models)
    add_dit(models)
