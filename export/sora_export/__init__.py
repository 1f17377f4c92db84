"""Builds bundles: a diffusers checkpoint in, small graphs that point into its weights out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sora_export.bundle_from_checkpoint import build_bundle

__all__ = ["build_bundle"]


def __getattr__(name: str) -> Any:
    """Import the builder, and torch with it, when it is asked for: the scorer needs neither."""
    if name != "build_bundle":
        raise AttributeError(f"module 'sora_export' has no attribute '{name}'")
    from sora_export.bundle_from_checkpoint import build_bundle

    return build_bundle
