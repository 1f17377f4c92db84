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
    from sora_runtime.manifest import FewStep


_TASKS = {"t2v": "from a prompt", "i2v": "from a picture and a prompt"}


def inspect(  # noqa: PLR0917  (each option of the command is a parameter)
    bundle: Annotated[
        str | None,
        typer.Argument(
            help="A bundle folder or a shipped bundle's name; with --memory also a model's.", metavar="BUNDLE"
        ),
    ] = None,
    graph: Annotated[str | None, typer.Option(help="Show one graph's operators.", metavar="NAME")] = None,
    graphs: Annotated[bool, typer.Option("--graphs", help="Show every graph's operators.", metavar="")] = False,
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Show what lies in a GPU's memory; without BUNDLE of known models.", metavar=""),
    ] = False,
    size: Annotated[str | None, typer.Option(help="With --memory: of the clip.", metavar="WxH")] = None,
    frames: Annotated[int | None, typer.Option(help="With --memory: of the clip.", metavar="N")] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with all of that.", metavar="")] = False,
    verify: Annotated[VerifyBundle, typer.Option(help="When to hash the bundle's files.")] = VerifyBundle.once,
) -> None:
    """Show the shapes, graphs, weights and parity of BUNDLE; fails if a file is damaged."""
    from sora_runtime.bundle import Bundle
    from sora_runtime.errors import InvalidRequest

    if memory:
        from sora_runtime.cli import memory_tables

        memory_tables.show(bundle, size, frames, json=json)
        return
    if bundle is None or size is not None or frames is not None:
        what = "there is no BUNDLE" if bundle is None else "--size and --frames are of a plan of memory"
        raise InvalidRequest(f"{what}; name one, or add --memory")
    loaded = Bundle.load(bundle, verify=verify.value)
    if graph is not None:
        _check_name(loaded, graph)
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
    from sora_runtime.cli import graph_tables
    from sora_runtime.cli.tables import print_all

    if graph is not None or graphs:
        names = [graph] if graph is not None else _graph_names(loaded)
        print_all(part for name in names for part in graph_tables.details(name, loaded.manifest.reports))
    else:
        print_all(_tables(loaded, hashed_now=hashed_now))


def _graph_names(bundle: Bundle) -> list[str]:
    return [name for name in bundle.manifest.files if name.endswith(".onnx")]


def _check_name(bundle: Bundle, graph: str) -> None:
    from sora_runtime.errors import InvalidRequest

    names = _graph_names(bundle)
    if graph not in names:
        raise InvalidRequest(f"'{bundle.name}' has no graph '{graph}'; use one of {', '.join(names)}")


def _tables(bundle: Bundle, *, hashed_now: bool) -> Iterator[RenderableType]:
    from sora_runtime.cli import graph_tables, preset_table
    from sora_runtime.cli.tables import columns, facts

    yield facts(_facts(bundle))
    graphs = ("graph", "size", "frames", "bytes", "parity")
    yield columns(graphs, _graphs(bundle), numbers={"frames", "bytes", "parity"})
    if bundle.manifest.presets:
        yield from preset_table.tables(bundle.manifest.presets)
    if bundle.manifest.reports:
        yield graph_tables.summary(_graph_names(bundle), bundle.manifest.reports)
    yield columns(("file", "bytes", "sha256"), _files(bundle), numbers={"bytes"})
    when = "now" if hashed_now else "when first seen; --verify always hashes again"
    yield facts([("verified", f"all {len(bundle.manifest.files)} files match their sha256, hashed {when}")])


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    from sora_runtime.cli.tables import byte_size

    manifest, known = bundle.manifest, bundle.manifest.facts
    user = known.defaults
    rows = [
        ("name", f"{manifest.name} ({manifest.family}, {manifest.precision}, {manifest.engine})"),
        ("makes clips", " and ".join(_TASKS[task] for task in manifest.tasks)),
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
    ]
    for name, record in manifest.components.text_encoders.items():
        outputs = ", ".join(f"{output} {'x'.join(map(str, dims))}" for output, dims in record.outputs.items())
        label = "text" if name == "text_encoder" else "text 2"
        rows.append((label, f"{record.max_sequence_length} tokens -> {outputs}"))
    if known.boundary_ratio is not None:
        rows.append(("boundary", f"{known.boundary_ratio:g} of the timesteps: transformer_2 below"))
    for adapter in manifest.adapters:
        what = f"{adapter.name} x {adapter.scale:g} in {adapter.modules} modules of {adapter.component}"
        rows.append(("merged", f"{what}, sha256 {adapter.sha256[:12]}"))
    if known.few_step is not None:
        rows.append(("few steps", _few_step(known.few_step)))
    made = ", ".join(f"{package} {version}" for package, version in manifest.made_by.items())
    return [*rows, ("made by", made or "not stated")]


def _few_step(few: FewStep) -> str:
    shift = "the scheduler's shift" if few.shift is None else f"shift {few.shift:g}"
    return f"sigmas {', '.join(f'{sigma:g}' for sigma in few.sigmas)}; {shift}; {few.solver or 'the own solver'}"


def _graphs(bundle: Bundle) -> Iterator[tuple[str, ...]]:
    parts = bundle.manifest.components
    encoders = {**parts.text_encoders, "image_encoder": parts.image_encoder}
    for name, encoder in encoders.items():
        if encoder is not None:
            yield _graph(bundle, name, encoder.graph, "", "")
    for name, transformer in (("transformer", parts.transformer), ("transformer_2", parts.transformer_2)):
        for bucket in transformer.buckets if transformer else ():
            yield _graph(bundle, name, bucket.graph, f"{bucket.width}x{bucket.height}", str(bucket.num_frames))
    for name, vae in (("vae_decoder", parts.vae_decoder), ("vae_encoder", parts.vae_encoder)):
        for tiles in vae.buckets if vae is not None and vae.kind == "tiled" else ():
            yield _graph(bundle, name, tiles.graph, f"{tiles.width}x{tiles.height}", "tile")
        for chunk in vae.buckets if vae is not None and vae.kind == "chunked" else ():
            size = f"{chunk.width}x{chunk.height}"
            yield _graph(bundle, name, chunk.first, size, "first")
            if chunk.next is not None:
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
