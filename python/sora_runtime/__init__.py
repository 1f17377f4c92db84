"""Video diffusion transformers at the lowest cost per generated second; `Runtime` is where to begin.

Names are imported on first use, so that `import sora_runtime` costs milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._core import CancelToken, EmbeddingCache
    from .bundle import Bundle
    from .clip import Clip
    from .cost.estimate import estimate
    from .errors import (
        BudgetExceeded,
        BundleError,
        Cancelled,
        EngineError,
        InvalidRequest,
        OutputError,
        SoraError,
    )
    from .receipt import Receipt
    from .request import RequestFields
    from .runtime import Runtime
    from .sampling import GuidanceRule, StepReuse

__version__ = "0.1.0"

_MODULE_OF = {
    "CancelToken": "._core",
    "EmbeddingCache": "._core",
    "BudgetExceeded": ".errors",
    "Bundle": ".bundle",
    "BundleError": ".errors",
    "Cancelled": ".errors",
    "EngineError": ".errors",
    "InvalidRequest": ".errors",
    "OutputError": ".errors",
    "SoraError": ".errors",
    "Receipt": ".receipt",
    "RequestFields": ".request",
    "estimate": ".cost.estimate",
    "Clip": ".clip",
    "Runtime": ".runtime",
    "GuidanceRule": ".sampling",
    "StepReuse": ".sampling",
}

__all__ = [
    "BudgetExceeded",
    "Bundle",
    "BundleError",
    "CancelToken",
    "Cancelled",
    "Clip",
    "EmbeddingCache",
    "EngineError",
    "GuidanceRule",
    "InvalidRequest",
    "OutputError",
    "Receipt",
    "RequestFields",
    "Runtime",
    "SoraError",
    "StepReuse",
    "__version__",
    "estimate",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sora_runtime' has no attribute '{name}'")
    value = getattr(import_module(_MODULE_OF[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
