"""Builds bundles: a diffusers checkpoint in, small graphs that point into its weights out."""

from sora_export.bundle_from_checkpoint import build_bundle

__all__ = ["build_bundle"]
