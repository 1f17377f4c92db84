"""Work that was recorded on a CUDA device, and the driver's answers."""

from __future__ import annotations

import weakref
from typing import Any

from ..errors import EngineError


class CudaGraph:
    """Work that was recorded, to be launched again and again on the stream where it was."""

    def __init__(self, driver: Any, executable: Any, stream: Any) -> None:
        self._driver, self._executable, self._stream = driver, executable, stream
        weakref.finalize(self, driver.cuGraphExecDestroy, executable)

    def launch(self) -> None:
        """Put all of it on the stream; raises `EngineError`."""
        try:
            result_of(self._driver.cuGraphLaunch(self._executable, self._stream))
        except RuntimeError as error:
            raise EngineError(f"a recorded clip cannot be launched ({error}); load the model again") from error


def result_of(answer: tuple[Any, ...]) -> Any:
    """What a call of the driver gives beside its error code; raises RuntimeError where that says so."""
    code, *rest = answer
    if int(code) != 0:
        raise RuntimeError(getattr(code, "name", str(code)))
    return rest[0] if rest else None
