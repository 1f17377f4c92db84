"""What the tests share: the shipped model, loaded once, and one clip of it."""

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from prompts import PROMPT
from sora_runtime import Clip, Runtime

ROOT = Path(__file__).parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Keep a file's tests on one worker, as they share fixtures; but families share nothing, and each takes minutes."""

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "/test_families.py::" in nodeid else str(super()._split_scope(nodeid))

    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


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
