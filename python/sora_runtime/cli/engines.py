"""`sora-bench engines`: which engine libraries can run and build here, and why the others cannot."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sora_runtime.engines.libraries import CudaStatus, LibraryStatus
    from sora_runtime.engines.store import EngineStore


def engines(
    json: Annotated[bool, typer.Option("--json", help="As JSON.", metavar="")] = False,
) -> None:
    """Show which engine libraries can run and build here, and what to install for the others."""
    from sora_runtime.engines.libraries import cuda_status, engine_libraries
    from sora_runtime.engines.store import EngineStore

    cuda, store = cuda_status(), EngineStore()
    libraries = engine_libraries(cuda)
    if json:
        typer.echo(json_format.dumps(_record(cuda, libraries, store), indent=2))
        return
    from sora_runtime.cli.tables import print_all

    print_all(_tables(cuda, libraries, store))


def _record(cuda: CudaStatus, libraries: list[LibraryStatus], store: EngineStore) -> dict[str, object]:
    from dataclasses import asdict

    entries = [
        {"folder": str(folder), **manifest.model_dump(mode="json", exclude={"report"})}
        for folder, manifest in store.entries()
    ]
    cache = {"folder": str(store.root), "max_bytes": store.max_bytes, "engines": entries}
    return {
        "cuda": asdict(cuda),
        "libraries": [asdict(library) for library in libraries],
        "own_int8_operators": _own_operators(),
        "cache": cache,
    }


def _own_operators() -> bool:
    from sora_runtime.engines.own_kernels import wanted

    return wanted()


def _tables(cuda: CudaStatus, libraries: list[LibraryStatus], store: EngineStore) -> Iterator[RenderableType]:
    from sora_runtime.cli.tables import columns, facts

    yield columns(("library", "version", "runs", "builds for"), map(_row, libraries), numbers=())
    missing = [(library.name, f"{library.reason}; {library.remedy}") for library in libraries if library.reason]
    if missing:
        yield facts(missing)
    int8 = "sora-runtime's own operators (AMX)" if _own_operators() else "ONNX Runtime's alone (no AMX)"
    yield facts([("int8 on this CPU", int8), ("GPU", _gpu(cuda)), ("cache", _cache(store))])


def _row(library: LibraryStatus) -> tuple[str, ...]:
    if library.version is None:
        return library.name, "not installed", "no", "-"
    targets = ", ".join(library.builds_for) or ("this machine" if library.builds else "-")
    return library.name, library.version, "yes" if library.runs else "no", targets


def _gpu(cuda: CudaStatus) -> str:
    if cuda.reason:
        return f"none: {cuda.reason}"
    return f"compute capability {', '.join(cuda.compute_capabilities)}; driver for CUDA {cuda.driver}"


def _cache(store: EngineStore) -> str:
    from sora_runtime.cli.tables import byte_size

    sizes = [sum(file.size for file in manifest.files.values()) for _, manifest in store.entries()]
    return f"{len(sizes)} engines, {byte_size(sum(sizes))} of at most {byte_size(store.max_bytes)}, in {store.root}"
