"""What the tests share: the shipped model, loaded once, and one clip of it."""

from pathlib import Path

import pytest

from prompts import PROMPT
from sora_runtime import Clip, Runtime

ROOT = Path(__file__).parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests on one worker, as they share fixtures, unless they name a group of their own."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


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
