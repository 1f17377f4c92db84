"""`sora-bench inspect`: what is inside a bundle."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from sora_runtime.cli.run_options import VerifyBundle

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sora_runtime.bundle import Bundle


def inspect(
    bundle: Annotated[str, typer.Argument(help="A bundle folder or a shipped bundle's name.", metavar="BUNDLE")],
    json: Annotated[bool, typer.Option("--json", help="As JSON.", metavar="")] = False,
    verify: Annotated[VerifyBundle, typer.Option(help="When to hash the bundle's files.")] = VerifyBundle.once,
) -> None:
    """Show the shapes, graphs, weights and parity of BUNDLE; fails if a file is damaged."""
    from sora_runtime.bundle import Bundle

    loaded = Bundle.load(bundle, verify=verify.value)
    hashed_now = verify is VerifyBundle.always
    if json:
        record = {
            "root": str(loaded.root),
            "sha256": loaded.sha256,
            "verified": "now" if hashed_now else "when first seen",
            **loaded.manifest.model_dump(mode="json"),
        }
        typer.echo((json_format.dumps(record, indent=2, ensure_ascii=False) + "\n").encode(), nl=False)
        return
    from sora_runtime.cli.tables import print_all

    print_all(_tables(loaded, hashed_now=hashed_now))


def _tables(bundle: Bundle, *, hashed_now: bool) -> Iterator[RenderableType]:
    from sora_runtime.cli.tables import columns, facts

    yield facts(_facts(bundle))
    graphs = ("graph", "size", "frames", "bytes", "parity")
    yield columns(graphs, _graphs(bundle), numbers={"frames", "bytes", "parity"})
    yield columns(("file", "bytes", "sha256"), _files(bundle), numbers={"bytes"})
    when = "now" if hashed_now else "when first seen; --verify always hashes again"
    yield facts([("verified", f"all {len(bundle.manifest.files)} files match their sha256, hashed {when}")])


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    from sora_runtime.cli.tables import byte_size

    manifest, known = bundle.manifest, bundle.manifest.facts
    user = known.defaults
    rows = [
        ("name", f"{manifest.name} ({manifest.family}, {manifest.precision})"),
        ("license", manifest.license or "not stated"),
        ("folder", str(bundle.root)),
        ("sha256", f"{bundle.sha256} (bundle.json)"),
        ("size", byte_size(sum(record.size for record in manifest.files.values()))),
        (
            "defaults",
            f"{user.width}x{user.height}, {user.num_frames} frames at {known.fps:g} fps, "
            f"{user.num_inference_steps} steps, guidance {user.guidance_scale:g}",
        ),
        ("negative", user.negative_prompt or "(empty)"),
        (
            "latents",
            f"{known.latent_channels} channels; stride {known.spatial_stride} in space, "
            f"{known.temporal_stride} in time; patch {'x'.join(map(str, known.patch_size))}",
        ),
        ("text", f"{known.max_sequence_length} tokens of {known.text_dim}"),
    ]
    if known.boundary_ratio is not None:
        rows.append(("boundary", f"{known.boundary_ratio:g} of the timesteps: transformer_2 below"))
    made = ", ".join(f"{package} {version}" for package, version in manifest.made_by.items())
    return [*rows, ("made by", made or "not stated")]


def _graphs(bundle: Bundle) -> Iterator[tuple[str, ...]]:
    parts = bundle.manifest.components
    yield _graph(bundle, "text_encoder", parts.text_encoder.graph, "", "")
    for name, transformer in (("transformer", parts.transformer), ("transformer_2", parts.transformer_2)):
        for bucket in transformer.buckets if transformer else ():
            size = f"{bucket.width}x{bucket.height}"
            yield _graph(bundle, name, bucket.graph, size, str(bucket.num_frames))
    for name, vae in (("vae_decoder", parts.vae_decoder), ("vae_encoder", parts.vae_encoder)):
        for chunk in vae.buckets if vae else ():
            size = f"{chunk.width}x{chunk.height}"
            yield _graph(bundle, name, chunk.first, size, "first")
            yield _graph(bundle, name, chunk.next, size, "next")


def _graph(bundle: Bundle, component: str, graph: str, size: str, frames: str) -> tuple[str, ...]:
    from sora_runtime.cli.tables import byte_size

    record = bundle.manifest.files.get(graph)
    entry = bundle.manifest.parity.get(graph) or bundle.manifest.parity.get(component) or {}
    error = entry.get("relative_l2")
    parity = f"{error:.1e}" if isinstance(error, float | int) else "not measured"
    label = graph if graph.startswith(component) else f"{component}: {graph}"
    return label, size, frames, byte_size(record.size) if record else "not listed", parity


def _files(bundle: Bundle) -> Iterator[tuple[str, str, str]]:
    from sora_runtime.cli.tables import byte_size

    for name, record in sorted(bundle.manifest.files.items()):
        if not name.endswith(".onnx"):
            yield name, byte_size(record.size), record.sha256[:12]
