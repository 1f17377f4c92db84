"""Fixtures: tiny checkpoints and the bundles built from them, each made once a session."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint, save_tiny_i2v_2_1, save_tiny_i2v_a14b, save_tiny_ti2v

from sora_export import build_bundle

# Not square and not the same in any two places, so that a swapped axis cannot pass.
SIZE = (32, 48)
FRAMES = 9


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint with the VAE of Wan 2.1."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("plain") / "checkpoint")


@pytest.fixture(scope="session")
def plain_bundle(plain: Path) -> Path:
    """Its bundle, in a folder beside it."""
    return build_bundle(plain, plain.parent / "bundle", [SIZE], [FRAMES], name="tiny")


@pytest.fixture(scope="session")
def residual_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in place: Wan 2.2 TI2V, for both tasks; the frames of its VAE come in patches of 2x2."""
    folder = save_tiny_ti2v(tmp_path_factory.mktemp("residual") / "checkpoint")
    return build_bundle(folder, folder, [(64, 96)], [FRAMES])


@pytest.fixture(scope="session")
def half_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two transformers, everything in bfloat16 and in many shards."""
    folder = tmp_path_factory.mktemp("half") / "checkpoint"
    save_tiny_checkpoint(folder, dtype=torch.bfloat16, max_shard_size="60KB", two_experts=True)
    return build_bundle(folder, folder, [SIZE], [FRAMES])


@pytest.fixture(scope="session")
def i2v_2_1_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wan 2.1 I2V with its CLIP image encoder."""
    folder = save_tiny_i2v_2_1(tmp_path_factory.mktemp("i2v_2_1") / "checkpoint")
    return build_bundle(folder, folder, [SIZE], [FRAMES])


@pytest.fixture(scope="session")
def i2v_a14b_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wan 2.2 I2V with two experts."""
    folder = save_tiny_i2v_a14b(tmp_path_factory.mktemp("i2v_a14b") / "checkpoint")
    return build_bundle(folder, folder, [SIZE], [FRAMES])


@pytest.fixture(params=["plain_bundle", "residual_bundle", "half_bundle"])
def bundle(request: pytest.FixtureRequest) -> Path:
    """Each of the three bundles."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def copy_of_plain(plain: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a checkpoint that a test may damage."""
    return lambda: Path(shutil.copytree(plain, tmp_path / "copy"))
