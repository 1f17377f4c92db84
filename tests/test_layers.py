"""The layers of the house: an import or an include may only point to its left, or into its own layer."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each folder of csrc may include.
CSRC = {
    "core": {"core"},
    "kernels": {"core", "kernels"},
    "sampler": {"core", "kernels", "sampler"},
    "cache": {"core", "cache"},
    "onnxruntime": {"kernels", "onnxruntime"},
    "bindings": {"core", "kernels", "sampler", "cache", "bindings"},
}

# The rank of each module or package of sora_runtime; it may import lower ranks and its own.
RANKS = [
    {"errors", "_core"},
    {"arena", "geometry", "machine", "output", "verify"},
    {"background", "batch_record", "forecast", "gpu_record"},
    {"budget_record", "manifest", "presets", "receipt", "reuse_record"},
    {"bundle", "pixels"},
    {"engines"},
    {
        *("embedding_store", "embedding_tiers", "sampling", "preset_use", "request", "request_settings"),
        *("seeds", "turns", "video", "clip"),
    },
    {
        "text",
        "condition",
        "decode",
        "tiles",
        "denoise",
        "clip_memory",
        "denoise_cuda",
        "chunks_cuda",
        "frames_cuda",
        "tiles_cuda",
        "programs",
    },
    {"stages"},
    {"encoders", "open_stages"},
    {"cost"},
    {"billing", "foresight"},
    {"budget", "spending"},
    {"runtime"},
    {"bench", "reuse_fit", "reuse_calibration"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
# Of the export: what runs a finished bundle to score, to calibrate or to check it, and what fills the engine store.
RUNS_BUNDLES = {"score.py", "trajectories.py", "check.py"}
BUILDS_ENGINES = {"build.py", "engine_from_onnx.py", "engines_of_bundle.py"}
# Never see each other, whatever their rank: the sampler gets a callable.
STRANGERS = [("engines", "sampling")]

PYTHON = sorted((ROOT / "python/sora_runtime").rglob("*.py"))
EXPORT = sorted((ROOT / "export/sora_export").rglob("*.py"))
INCLUDES = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".inl", ".cu", ".cuh"})


def module_of(path: Path) -> str:
    return path.relative_to(ROOT / "python/sora_runtime").with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """Absolute names of what a file imports."""
    package = path.relative_to(ROOT / ("python" if path in PYTHON else "export")).parent.parts
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = list(package[: len(package) - node.level + 1]) if node.level else []
        base += (node.module or "").split(".") if node.module else []
        found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


@pytest.mark.parametrize("path", INCLUDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_includes_point_left(path: Path) -> None:
    layer = path.relative_to(ROOT / "csrc").parts[0]
    for folder in re.findall(r'#include "([a-z_]+)/', path.read_text()):
        assert folder in CSRC[layer], f"{layer} may not include {folder}"


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path: Path) -> None:
    module = module_of(path)
    if module == "__init__":
        return  # the public face imports lazily, by name
    assert module in RANK, f"give '{module}' a rank in this test"
    for name in imports_of(path):
        parts = name.split(".")
        assert parts[0] != "sora_export" or module == "cli", "only the command line may call the export"
        if parts[0] != "sora_runtime" or len(parts) < 2 or parts[1] not in RANK:
            continue
        assert RANK[parts[1]] <= RANK[module], f"{module} may not import {parts[1]}"
        for a, b in STRANGERS:
            assert {a, b} != {module, parts[1]}, f"{a} and {b} must not know each other"


@pytest.mark.parametrize("path", EXPORT, ids=lambda path: str(path.relative_to(ROOT)))
def test_export_does_not_import_what_reads_bundles(path: Path) -> None:
    allowed = {"errors", "machine", "output"}
    if path.name in RUNS_BUNDLES:
        return
    if path.name in BUILDS_ENGINES:
        allowed |= {"engines", "bundle"}  # what it builds lies in the runtime's store
    for name in imports_of(path):
        parts = name.split(".")
        assert parts[0] != "sora_runtime" or len(parts) == 1 or parts[1] in allowed, name


def test_the_core_neither_prints_nor_exits_nor_reads_the_environment() -> None:
    forbidden = re.compile(r"\b(printf|std::cout|std::cerr|getenv|exit|abort)\b")
    for path in INCLUDES:
        assert not forbidden.search(re.sub(r"//.*", "", path.read_text())), path


def test_kernels_do_not_allocate() -> None:
    for name in ("step.inl", "launch_cpu.h", "step.h", "cpu.cpp"):
        code = re.sub(r"//.*", "", (ROOT / "csrc/kernels" / name).read_text())
        assert not re.search(r"\bnew\b|malloc|std::vector|make_unique|resize", code), name


def test_public_and_shipped_code_never_needs_torch_at_import() -> None:
    for path in PYTHON:
        heavy = {name.split(".")[0] for name in imports_of(path)} & {"torch", "diffusers", "transformers"}
        assert not heavy, f"{path} imports {heavy}"
