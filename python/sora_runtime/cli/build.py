"""`sora-bench build`: makes a bundle of a diffusers checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sora_runtime.cli.parse import parse_size
from sora_runtime.errors import SoraError

_EXPORT_PACKAGES = {
    "diffusers",
    "ftfy",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "torch",
    "transformers",
}


def build(
    checkpoint: Annotated[Path, typer.Argument(help="A diffusers checkpoint folder.", metavar="CHECKPOINT")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The bundle; CHECKPOINT itself is fine.")],
    size: Annotated[list[str], typer.Option(metavar="WIDTHxHEIGHT", help="In pixels; several: repeat it.")],
    frames: Annotated[list[int], typer.Option(metavar="N", help="Number of frames; several: repeat it.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="For receipts; if not given, the folder's.")] = None,
    check_parity: Annotated[
        bool,
        typer.Option(
            "--parity/--no-parity",
            help="Compare every graph with torch on the real weights, or take it on trust.",
        ),
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on the way.", metavar="")] = False,
) -> None:
    """Export CHECKPOINT to graphs for every --size with every --frames; its weights stay put."""
    sizes = [(pixels.height, pixels.width) for pixels in map(parse_size, size)]
    for path in (checkpoint, out):
        _check_path(path)
    progress: Callable[[str], None] = (lambda _: None) if quiet else _say
    try:
        from sora_export.bundle_from_checkpoint import build_bundle

        folder = build_bundle(
            checkpoint,
            out,
            sizes,
            frames,
            name=name,
            check_parity=check_parity,
            progress=progress,
        )
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXPORT_PACKAGES:
            raise
        raise SoraError(f"build needs {package}, which is not installed; pip install 'sora-runtime[export]'") from error
    if not quiet:
        typer.echo(folder)


def _check_path(path: Path) -> None:
    try:
        path.exists()  # raises where that cannot even be asked: a name too long, a folder that is locked
    except OSError as error:
        raise SoraError(f"{path} cannot be opened ({os.strerror(error.errno or 0).lower()}); check the path") from error


def _say(message: str) -> None:
    typer.echo(message, err=True)
