"""What the tests share: the shipped model, loaded once, and one clip of it."""

from pathlib import Path

import pytest

from prompts import PROMPT
from sora_runtime import Clip, Runtime

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _own_cache_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's cache folder out of the tests, and the tests out of it."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return Runtime.load("wan-pocket", num_threads=2)


@pytest.fixture(scope="session")
def clip(runtime: Runtime) -> Clip:
    """A short clip: its receipt says so."""
    return runtime.generate(PROMPT, seed=7, num_inference_steps=4)
