"""What tests of the bundled models share."""

from __future__ import annotations

from pathlib import Path

import pytest

import mmldm


@pytest.fixture(scope="session")
def unseen_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of one scene of each class, encoded by the bundled models, which takes long.

    The seed is neither that of their training nor that of the scenes they were measured on.
    """
    cache = tmp_path_factory.mktemp("unseen")
    ingest = ["ingest", "scenes:20000013:9:4", "--cache", str(cache), "--workers", "2"]
    assert mmldm.main([*ingest, "--levels", "kl,perceptual", "--autoencoder", "tiny"]) == 0
    return cache
