"""How a clip is run: engine, attention kernel, precision, parallelism - the inputs on which the achieved rates depend.

What a source or a user says in its own words ("FA3 + torch compile; ulysses 4") is read here into those few inputs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from sora_runtime.errors import InvalidRequest

PRECISIONS = ("bf16", "fp16", "fp32", "fp8", "int8", "nvfp4", "int8-weights", "int4-weights", "fp6-weights")
ATTENTIONS = ("fa2", "fa3", "cudnn", "masked", "sage2", "sage3", "fp8", "cpu")


@dataclass(frozen=True)
class Engine:
    """A piece of software that runs the networks."""

    name: str
    compiled: bool  # elementwise operators are fused into few kernels
    current: bool  # picks the best attention kernel of the GPU it runs on, whatever the model's age
    pattern: str  # recognises its name in what others write


# First match wins, so that "diffusers + TeaCache" is diffusers and "xDiT + official repo" is xDiT.
ENGINES = (
    Engine("lightx2v", True, True, r"lightx2v"),
    Engine("sglang", True, True, r"sglang"),
    Engine("vllm-omni", True, True, r"vllm"),
    Engine("tensorrt-llm", True, True, r"trt.?llm|tensorrt.?llm|visualgen"),
    Engine("tensorrt", True, True, r"tensorrt|\btrt\b"),
    Engine("fastvideo", False, True, r"fastvideo"),
    Engine("comfyui", False, True, r"comfyui|wan2gp|turbodiffusion"),
    Engine("xdit", False, False, r"xdit"),
    Engine("diffusers", False, False, r"diffusers|sana"),
    Engine("onnxruntime", True, True, r"onnx"),
    Engine("official", False, False, r".*"),
)
ENGINE_BY_NAME = {engine.name: engine for engine in ENGINES}

# Models released since then had official code written for the kernels of their day.
MODERN = "2025-06"


@dataclass(frozen=True)
class Parallelism:
    """How several GPUs share one clip; their product is the number of GPUs."""

    cfg: int = 1  # the two evaluations of guidance side by side
    ulysses: int = 1  # heads over GPUs, by all-to-all
    ring: int = 1  # keys and values in a ring
    tensor: int = 1  # every matrix split, by all-reduce
    vae: bool = False  # the decoder is split too

    @property
    def gpus(self) -> int:
        """GPUs that one clip occupies."""
        return self.cfg * self.ulysses * self.ring * self.tensor


@dataclass(frozen=True)
class Setting:
    """Everything beside model, shape and GPU that decides how fast a clip is made."""

    engine: Engine = ENGINE_BY_NAME["diffusers"]
    compiled: bool = False
    attention: str = "fa2"
    attention_stated: bool = False
    attention_density: float = 1.0  # share of the scores that sparse attention computes
    attention_method: str = ""  # the sparse method, if any
    precision: str = "bf16"
    reuse: str = ""  # the step-reuse method, if any
    reuse_threshold: float = 0.0
    reuse_share: float | None = None  # steps not evaluated; None: the method's usual share
    parallelism: Parallelism = field(default_factory=Parallelism)
    offload: str = ""  # "", model (moved once a clip) or block (streamed in every evaluation)
    small_decoder: bool = False  # a distilled VAE decoder
    loads: bool = False  # the time holds the reading of the weights from disk too


@lru_cache(maxsize=4096)
def find_engine(text: str) -> Engine:
    """The engine that `text` names; a user's misspelling is refused by `parse_engine`."""
    lower = text.lower()
    return next(engine for engine in ENGINES if re.search(engine.pattern, lower))


def parse_engine(text: str) -> Engine:
    """The engine a user asked for by name.

    Raises:
        InvalidRequest: not one of `ENGINES`.
    """
    if text.lower() in ENGINE_BY_NAME:
        return ENGINE_BY_NAME[text.lower()]
    raise InvalidRequest(f"engine = {text!r} is not known; use one of {', '.join(ENGINE_BY_NAME)}")


def default_attention(engine: Engine, architecture: str, released: str, *, masked: bool = False) -> str:
    """The attention kernel where nobody says: what the engine picks on that GPU for a model of that time."""
    if architecture == "cpu":
        return "cpu"
    if masked and engine.name == "diffusers":
        return "masked"  # an attention mask keeps torch from its fast kernels
    modern = engine.current or released >= MODERN
    if architecture == "hopper":
        return "fa3" if modern else "fa2"
    return "cudnn" if architecture == "blackwell" else "fa2"  # older software does not run on Blackwell at all


_ATTENTION_WORDS = (
    ("sage3", r"sage.?attention.?3|fp4 attention"),
    ("sage2", r"sage"),
    ("fp8", r"flash.?att\w*.?3 fp8|fa3.fp8"),
    ("fa3", r"flash.?att\w*.?3|\bfa3\b"),
    ("cudnn", r"cudnn|sm100 attention"),
    ("fa2", r"flash.?att\w*.?2|\bfa2\b"),
)
# Density of the method's usual setting, from its own publication.
SPARSE = {
    "svg": (r"svg", 0.3),
    "radial": (r"radial", 0.3),
    "sta": (r"\bsta\b|sliding tile", 0.42),
    "vsa": (r"\bvsa\b", 0.15),
    "nabla": (r"nabla", 0.2),
    "sla": (r"sagesla|\bsla\b", 0.1),
    "block": (r"block-sparse|subblock|pisa", 0.25),
}


@lru_cache(maxsize=4096)
def attention_in(text: str, architecture: str) -> str | None:
    """The attention kernel that `text` names, if it does."""
    lower = text.lower()
    if "fa3 on hopper" in lower:
        return "fa3" if architecture == "hopper" else "fa2"
    return next((name for name, words in _ATTENTION_WORDS if re.search(words, lower)), None)


@lru_cache(maxsize=4096)
def sparse_in(text: str) -> tuple[str, float]:
    """The sparse attention method that `text` names and the share of scores it computes; ("", 1) for none."""
    lower = text.lower()
    for name, (words, usual) in SPARSE.items():
        if re.search(words, lower):
            stated = re.search(r"density (0?\.\d+)|sparse\w* (0?\.\d+)|subblock (0?\.\d+)|(\d+)% sparsity", lower)
            return name, usual if stated is None else _density(stated)
    return "", 1.0


def _density(stated: re.Match[str]) -> float:
    density, *sparsities, percent = stated.groups()
    if density:
        return float(density)
    if percent:
        return 1.0 - float(percent) / 100.0
    return 1.0 - float(next(value for value in sparsities if value))


_REUSE = {
    "teacache": r"teacache(?: thresh)? ?(\d*\.?\d+)?",
    "taylorseer": r"taylorseer",
    "easycache": r"easycache",
    "magcache": r"magcache",
    "cache-dit": r"cache-?dit|dbcache|fbcache",
}


@lru_cache(maxsize=4096)
def reuse_in(text: str) -> tuple[str, float, float | None]:
    """The step-reuse method in `text`, its threshold, and the share of steps reused where it is said."""
    lower = text.lower()
    for name, words in _REUSE.items():
        found = re.search(words, lower)
        if not found:
            continue
        threshold = float(found.group(1)) if found.groups() and found.group(1) else 0.0
        said = re.search(r"(\d+)/(\d+) steps reused|(\d+)% of steps reused", lower)
        share = None
        if said:
            share = float(said.group(3)) / 100 if said.group(3) else int(said.group(1)) / int(said.group(2))
        return name, threshold, share
    return "", 0.0, None


@lru_cache(maxsize=4096)
def parallelism_in(text: str, gpus: int, *, guided: bool, engine: Engine) -> Parallelism:
    """How `gpus` GPUs share a clip, from what `text` says; Ulysses where it says nothing."""
    lower = text.lower()
    vae = bool(re.search(r"vae parallel|parallel vae", lower))
    sizes = {name: _degree(lower, words) for name, words in _PARALLEL.items()}
    if gpus == 1:
        return Parallelism()
    if "tensor parallel" in lower and not sizes["tensor"]:
        cfg = 2 if guided and gpus % 2 == 0 else 1  # the halves of guidance share nothing: split there first
        return Parallelism(cfg=cfg, tensor=gpus // cfg, vae=vae)
    known = 1
    for size in sizes.values():
        known *= size or 1
    rest = max(gpus // known, 1)
    cfg = sizes["cfg"] or 1
    ulysses = sizes["ulysses"] or 1
    if rest > 1 and sizes["cfg"] is None and guided and engine.current and rest % 2 == 0 and known == 1:
        cfg, rest = 2, rest // 2
    return Parallelism(cfg, ulysses * rest, sizes["ring"] or 1, sizes["tensor"] or 1, vae)


_PARALLEL = {
    "cfg": r"cfg(?:-?parallel)? ?=?x?(\d)",
    "ulysses": r"(?:ulysses|usp|sp|cp) ?-?=?x?(\d)",
    "ring": r"ring ?-?=?x?(\d)",
    "tensor": r"(?:\btp|tensor parallel) ?-?=?x?(\d)",
}


def _degree(text: str, words: str) -> int | None:
    found = re.search(words, text)
    return int(found.group(1)) if found else None


# torchao's names of quantisations, by their beginnings.
_TORCHAO = {
    "int8wo": "int8-weights",
    "int4wo": "int4-weights",
    "int8dq": "int8",
    "int4dq": "int8",
    "autoquant": "int8",
    "sparsify": "int8-weights",
    "fp8": "fp8",
    "fp6": "fp6-weights",
    "fp5": "fp6-weights",
    "fp4": "fp6-weights",
}


@lru_cache(maxsize=4096)
def precision_in(column: str, text: str) -> str:
    """The precision of the linear layers, from a precision column and what the optimisations say."""
    lower = text.lower()
    quantised = re.search(r"quant=(\w+)", lower)
    if quantised:
        kind = quantised.group(1)
        named = next((name for prefix, name in _TORCHAO.items() if kind.startswith(prefix)), None)
        if named is not None:
            return named
    if "dequantised" in lower or "quanto" in lower:
        return "int8-weights"
    value = column.strip().lower()
    return value if value in PRECISIONS else "bf16"
