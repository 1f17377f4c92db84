"""The receipt of a clip: what ran, on what, how long each stage took, and what it cost.

Schema version 2. Every number was measured in the run it describes, or the receipt says `estimated: true` and holds
a `forecast` with the error band; what is neither is null, and `reasons` says why under the field's dotted name.
Times are seconds of wall clock, money is USD.
"""

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from .batch_record import BatchRecord
from .budget_record import BudgetRecord, PresetRecord
from .forecast import Forecast, Predicted
from .gpu_record import GpuUse
from .reuse_record import ReuseSettings

SCHEMA_VERSION = 2
NOT_SAVED = "the clip was not written to a file"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelRecord(_Record):
    """Which bundle made the clip."""

    name: str
    family: str
    bundle_sha256: str | None  # of bundle.json, which lists the sha256 of every other file


class EngineRecord(_Record):
    """Which library ran the networks, and how."""

    name: str
    version: str | None
    precision: str
    num_threads: int | None
    attention: str | None = None  # the kernel, where it is known


class MachineRecord(_Record):
    """Where it ran."""

    cpu: str | None
    cores: int | None
    memory_bytes: int | None
    os: str | None
    gpu: str | None = None
    gpu_count: int | None = None


class GuidanceRecord(_Record):
    """Guidance that is more than a scale; see `sora_runtime.sampling.Guidance`."""

    method: str
    interval: tuple[float, float] | None
    decay: float
    zero_init_steps: int
    eta: float
    momentum: float
    norm_threshold: float


class RequestRecord(_Record):
    """The request with every default filled in: enough to make the same clip again."""

    task: str  # t2v or i2v
    prompt: str | None
    negative_prompt: str | None
    seed: int | None  # null when latents were passed in and no step draws noise
    rng: str | None
    solver: str | None
    schedule: str | None
    num_inference_steps: int
    guidance_scale: float | None
    guidance_scale_2: float | None  # of the second transformer, where a model has one
    guidance_rescale: float | None
    height: int
    width: int
    num_frames: int
    fps: float
    guidance: GuidanceRecord | None = None  # beyond the scale; null: plain guidance
    step_reuse: ReuseSettings | None = None
    step_reuse_calibrated: bool | None = None  # null without step reuse; false: it was forced
    preset: PresetRecord | None = None  # whose settings are among the above


class Tokens(_Record):
    """Latent tokens of the clip, and tokens x evaluations that the transformer processed."""

    latent_tokens: int
    tokens_processed: int


class Evaluations(_Record):
    """Network calls of the transformer; with guidance a step makes two."""

    made: int
    skipped: int
    reused_rows: list[int] = Field(default_factory=list)  # of the sampler program, a branch or both


class CacheRecord(_Record):
    """How often this clip found in the embedding cache what an encoder would have computed."""

    hits: int
    misses: int


class Seconds(_Record):
    """Wall time by stage; `total` is from request to the last decoded (and, if saved, encoded) frame.

    Neither `load` nor `queued` is part of the total: no clip pays for what another one did.
    """

    load: float | None  # of the bundle and its engines, once per runtime
    queued: float | None  # waiting for other threads' clips on the same runtime
    tokenize: float | None
    text_encode: float
    image_encode: float | None  # of the picture that an image-to-video clip begins with
    denoise: float
    per_step: list[float]  # empty where the device does all rows at once
    vae_decode: float
    encode_mp4: float | None  # where frames are encoded as they come, most of it passes beside vae_decode
    total: float


class Cost(_Record):
    """Money at the stated hourly price of the whole machine."""

    usd_per_hour: float
    price_source: str
    price_is_default: bool
    usd_per_clip: float
    usd_per_generated_second: float


class Hashes(_Record):
    """sha256 of what ran: files, and the bytes of arrays."""

    sampler_program: str | None
    graphs: dict[str, str]
    weights: dict[str, str]  # the files that those graphs' initialisers point into
    prompt_embeds: dict[str, str]  # by name of the text
    latents: str | None  # of noise that the caller passed in
    image: str | None  # of the picture's pixels


class Receipt(_Record):
    """One clip's receipt; `str()` is a table for people, `model_dump_json()` the record."""

    schema_version: int = SCHEMA_VERSION
    created: str  # ISO 8601, UTC
    model: ModelRecord
    engine: EngineRecord
    machine: MachineRecord
    request: RequestRecord
    tokens: Tokens
    evaluations: Evaluations
    embedding_cache: CacheRecord | None  # of its prompts
    image_cache: CacheRecord | None = None  # of what is encoded of its picture; null without one
    batch: BatchRecord | None = None  # null: the clip was made alone
    seconds: Seconds
    engine_seconds: float  # inside networks alone; on a GPU machine these are its GPU-seconds
    gpu_use: GpuUse | None = None  # its energy and clocks; null: the engine ran on the CPU, or nobody could say
    peak_host_memory_bytes: int | None  # of the process over its life so far, not of this clip alone
    video_seconds: float
    cost: Cost
    hashes: Hashes | None
    estimated: bool = False
    forecast: Forecast | None = None  # of an estimate
    predicted: Predicted | None = None  # of a measured clip, where a machine profile was at hand
    budget: BudgetRecord | None = None  # of a request with max_usd or deadline_s
    reasons: dict[str, str] = Field(default_factory=dict)

    # What the last file took beyond the time inside `generate`; replaced, not added, by the next one.
    _encode_beyond_total: float = PrivateAttr(0.0)

    def record_encode(self, seconds: float, *, within_total: float = 0.0) -> None:
        """Enter the time an mp4 took, and bill what of it did not already pass inside `generate`.

        Args:
            seconds: all time the file took.
            within_total: the part of it that `seconds.total` already holds.
        """
        beyond = seconds - within_total
        self.seconds.encode_mp4 = seconds
        self.reasons.pop("seconds.encode_mp4", None)
        self.seconds.total += beyond - self._encode_beyond_total
        self._encode_beyond_total = beyond
        self.bill()

    def bill(self) -> None:
        """Work out the cost anew after a change of the total."""
        self.cost = cost_of(
            self.seconds.total,
            self.video_seconds,
            usd_per_hour=self.cost.usd_per_hour,
            price_source=self.cost.price_source,
            price_is_default=self.cost.price_is_default,
        )

    def __str__(self) -> str:
        return "\n".join(f"{name:<18}{value}" for name, value in self.lines())

    def lines(self) -> list[tuple[str, str]]:
        """The receipt as (label, text) pairs, each fitting 80 columns; what is null is left out."""
        found = [*self._identity_lines(), *self._stage_lines(), *self._cost_lines()]
        return [(label, text) for label, text in found if text]

    def _identity_lines(self) -> list[tuple[str, str]]:
        r, machine = self.request, self.machine
        guidance = "" if r.guidance_scale is None else f", guidance {r.guidance_scale:g}"
        reuse = "" if r.step_reuse is None else f", {r.step_reuse.policy}"
        seed = "" if self.estimated else f", seed {r.seed if r.seed is not None else 'none'}"
        bundle = "" if self.model.bundle_sha256 is None else f", {self.model.bundle_sha256[:12]}"
        engine = " ".join(word for word in (self.engine.name, self.engine.version) if word)
        threads = "" if self.engine.num_threads is None else f", {self.engine.num_threads} threads"
        host = "" if machine.cpu is None else f"{machine.cpu}, {machine.cores} cores"
        return [
            ("estimated", "yes: nothing ran" if self.estimated else ""),
            ("model", f"{self.model.name} {self.engine.precision}{bundle}"),
            ("engine", f"{engine}{threads}"),
            ("machine", f"{machine.gpu_count} x {machine.gpu}" if machine.gpu else host),
            ("clip", f"{r.width}x{r.height}, {r.num_frames} frames, {self.video_seconds:.2f} s"),
            ("sampler", f"{r.num_inference_steps} steps{f' {r.solver}' if r.solver else ''}{guidance}{reuse}{seed}"),
            ("preset", "" if r.preset is None else _fitting(str(r.preset))),
            ("budget", "" if self.budget is None else _fitting(str(self.budget))),
            ("tokens", f"{self.tokens.latent_tokens:,} latent, {self.tokens.tokens_processed:,} processed"),
            ("evaluations", f"{self.evaluations.made} made, {self.evaluations.skipped} skipped"),
        ]

    def _stage_lines(self) -> list[tuple[str, str]]:
        s = self.seconds
        encode = "not written" if s.encode_mp4 is None else f"{s.encode_mp4:.2f} s"
        load = "" if s.load is None or self.estimated else f" (load {s.load:.2f} s before)"
        return [
            ("embedding cache", _counts(self.embedding_cache)),
            ("shared", "" if self.batch is None else str(self.batch)),
            ("image cache", _counts(self.image_cache)),
            ("tokenize", "" if s.tokenize is None else f"{s.tokenize * 1e3:.1f} ms"),
            ("text_encode", f"{s.text_encode * 1e3:.1f} ms"),
            ("image_encode", "" if s.image_encode is None else f"{s.image_encode * 1e3:.1f} ms"),
            ("denoise", f"{s.denoise:.2f} s" + (f", {s.denoise / len(s.per_step):.3f} s a step" if s.per_step else "")),
            ("vae_decode", f"{s.vae_decode:.2f} s"),
            ("encode_mp4", "" if self.estimated else encode),
            ("total", f"{s.total:.2f} s{load}"),
            ("predicted", self._predicted_line()),
            ("engine-seconds", f"{self.engine_seconds:.2f}"),
            ("energy", "" if self.gpu_use is None else _fitting(str(self.gpu_use))),
        ]

    def _predicted_line(self) -> str:
        if self.forecast is not None:
            band = self.forecast.seconds
            return f"{band.p10:.4g} to {band.p90:.4g} s with 80% probability"
        if self.predicted is not None:
            band = self.predicted.seconds
            missed = self.seconds.total / band.p50 - 1
            return f"{band.p50:.2f} s ({band.p10:.2f} to {band.p90:.2f}), measured {missed:+.0%}"
        return ""

    def _cost_lines(self) -> list[tuple[str, str]]:
        c, memory = self.cost, self.peak_host_memory_bytes
        price = "default price" if c.price_is_default else "your price"
        return [
            ("peak memory", "" if memory is None else f"{memory / 2**20:,.0f} MiB"),
            ("price", f"{c.usd_per_hour:.4f} USD an hour ({price})"),
            ("cost per clip", f"{c.usd_per_clip:.8f} USD"),
            ("cost per second", f"{c.usd_per_generated_second:.8f} USD of generated video"),
        ]


def _counts(cache: CacheRecord | None) -> str:
    return "" if cache is None else f"{cache.hits} hits, {cache.misses} misses"


def _fitting(text: str, columns: int = 62) -> str:
    return text if len(text) <= columns else f"{text[: columns - 4]} ..."


def cost_of(
    total_seconds: float,
    video_seconds: float,
    *,
    usd_per_hour: float,
    price_source: str,
    price_is_default: bool,
) -> Cost:
    """What a clip cost: wall seconds on the machine times its hourly price."""
    usd = total_seconds * usd_per_hour / 3600
    return Cost(
        usd_per_hour=usd_per_hour,
        price_source=price_source,
        price_is_default=price_is_default,
        usd_per_clip=usd,
        usd_per_generated_second=usd / video_seconds,
    )
