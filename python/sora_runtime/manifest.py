"""The records of bundle.json: what the runtime must know of a model, as data, without the model's name.

`sora_export.bundle_from_checkpoint` writes it. Lengths are in elements, strides in pixels and frames.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from .presets import Preset, PresetName
from .reuse_record import ReuseCalibration
from .verify import FileRecord, RelativePath

SCHEMA_VERSION = 2

Task = Literal["t2v", "i2v"]
Triple = tuple[PositiveInt, PositiveInt, PositiveInt]


class _Record(BaseModel):
    """A part of bundle.json; keys of later minor versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Defaults(_Record):
    """What a request gets that does not say otherwise."""

    num_inference_steps: int = Field(ge=1)
    guidance_scale: float
    negative_prompt: str = ""
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    num_frames: int = Field(gt=0)


class FewStep(_Record):
    """The levels that a distilled model was made for: what a request gets that names no levels or steps of its own.

    `sigmas` are of flow matching, before `shift`, which takes the place of the scheduler's; None leaves that as it is.
    """

    sigmas: tuple[float, ...] = Field(min_length=1)
    shift: PositiveFloat | None = None
    solver: str | None = None  # None: the scheduler's own


class AdapterRecord(_Record):
    """An adapter that was merged into the weights of a component."""

    component: str
    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of its file
    scale: float
    modules: PositiveInt  # layers that it changes


class PixelInput(_Record):
    """How a picture becomes `pixel_values` [1, 3, size, size] of a vision encoder."""

    size: PositiveInt
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    crop: Literal["center"] | None = None  # of a picture whose shorter side is `size`; None: squeezed into the square


class ImageFacts(_Record):
    """How a model takes the picture that an image-to-video clip begins with.

    `condition` is the graph's input: for the policy `first_frame` the picture's latent [1, C, 1, h, w], which
    the graph puts in the place of the first; for `concat` channels of every latent frame, mask and latents.
    """

    policy: Literal["concat", "first_frame"]
    # What follows the picture in time: nothing, latents of zero, or the latents of frames of zero (mid grey).
    video: Literal["first_only", "zeros_after", "encode_zeros"]
    mask: Literal["before", "after"] | None = None  # 1 at the first latent frame; beside the latents' channels
    mask_channels: int = Field(ge=0, default=0)
    # stretch: the VAE sees the picture stretched to the clip's size, the vision encoder as it is. crop: both see the
    # middle of the picture, scaled to cover the clip.
    fit: Literal["stretch", "crop"] = "stretch"
    image_encoder: PixelInput | None = None
    # The rest of the latents that a clip starts from, in every frame, is the picture's.
    noise_share: float = Field(gt=0, le=1, default=1.0)
    dropped_frames: int = Field(ge=0, default=0)  # decoded frames at the beginning that are not shown


class Facts(_Record):
    """What the runtime must know of a model."""

    latent_channels: PositiveInt
    spatial_stride: PositiveInt
    temporal_stride: PositiveInt
    patch_size: Triple
    fps: float = Field(ge=1, le=240)
    boundary_ratio: float | None = None
    num_train_timesteps: int = 1000
    # The guidance scale times this is the graph's input `guidance`; there is no second branch.
    embedded_guidance: float | None = None
    # The sigmas before the shift are 1 to 1/n in even steps, whatever the scheduler would take.
    sigma_grid: Literal["uniform"] | None = None
    # Latent frames are filled up to whole patches; as many are dropped in front before decoding.
    pad_latent_frames: bool = False
    image: ImageFacts | None = None
    few_step: FewStep | None = None
    defaults: Defaults


class GraphComponent(_Record):
    """A component with one graph; `fingerprint` names its weights and graph by content."""

    graph: RelativePath
    fingerprint: str


class TextEncoderRecord(GraphComponent):
    """A text encoder: how a prompt becomes its token ids, and which inputs of the transformer it gives."""

    tokenizer: RelativePath
    max_sequence_length: PositiveInt
    pad_token_id: int = 0
    padding_side: Literal["right", "left"] = "right"
    overflow: Literal["refuse", "truncate"] = "refuse"
    clean: bool = False  # HTML entities decoded, runs of white space folded, as diffusers' Wan pipeline does
    template: str = "{}"  # the text around the prompt
    empty: str = ""  # stands in the template for an empty prompt
    prompt: Literal["whole", "quoted"] = "whole"  # quoted: what stands in quotation marks; zeros where nothing does
    inputs: list[str]
    outputs: dict[str, tuple[PositiveInt, ...]] = Field(min_length=1)
    image_input: PixelInput | None = None  # the encoder sees the picture too, as `pixel_values`


class TransformerBucket(_Record):
    """One static shape of the transformer, in pixels and frames."""

    height: PositiveInt
    width: PositiveInt
    num_frames: PositiveInt
    task: Task = "t2v"
    graph: RelativePath


class Transformer(_Record):
    """A denoiser with a graph for each bucket."""

    buckets: list[TransformerBucket] = Field(min_length=1)


class ChunkBucket(_Record):
    """A stateful VAE at one size: the graph of the first latents and that of all later ones."""

    height: PositiveInt
    width: PositiveInt
    num_frames: PositiveInt | None = None  # None: any number
    first: RelativePath
    next: RelativePath | None = None  # None: the first chunk is the whole clip


class ChunkedVae(_Record):
    """A causal VAE decoder or encoder that passes feature caches from chunk to chunk."""

    kind: Literal["chunked"] = "chunked"
    buckets: list[ChunkBucket] = Field(min_length=1)


class Tile(_Record):
    """How latents are cut: the shape of a tile and the distance of their origins, [frames, rows, columns]."""

    latent: Triple
    stride: Triple


class TiledBucket(_Record):
    """A VAE decoder without memory: one graph for every tile of a clip."""

    height: PositiveInt
    width: PositiveInt
    num_frames: PositiveInt
    graph: RelativePath
    tile: Tile


class TiledVae(_Record):
    """A VAE decoder whose overlapping tiles are blended."""

    kind: Literal["tiled"]
    buckets: list[TiledBucket] = Field(min_length=1)


class Components(_Record):
    """The networks of a bundle, under diffusers' names."""

    text_encoder: TextEncoderRecord
    text_encoder_2: TextEncoderRecord | None = None
    image_encoder: GraphComponent | None = None
    transformer: Transformer
    transformer_2: Transformer | None = None
    vae_decoder: Annotated[ChunkedVae | TiledVae, Field(discriminator="kind")]
    vae_encoder: ChunkedVae | None = None

    @property
    def text_encoders(self) -> dict[str, TextEncoderRecord]:
        """Those there are, by name."""
        both = {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return {name: record for name, record in both.items() if record is not None}


class Manifest(_Record):
    """The whole of bundle.json."""

    schema_version: int
    name: str
    family: str
    tasks: list[Task] = Field(min_length=1)
    engine: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"] = "onnxruntime"
    precision: str
    license: str | None = None
    facts: Facts
    scheduler: RelativePath
    components: Components
    files: dict[RelativePath, FileRecord]
    adapters: list[AdapterRecord] = []
    merged: dict[str, RelativePath] = {}  # component -> the tensors that stand in the place of the checkpoint's
    parity: dict[str, dict[str, object]] = {}
    reports: dict[str, dict[str, object]] = {}  # of graphs: operators, FLOPs, parameters, bytes
    made_by: dict[str, str] = {}
    step_reuse: list[ReuseCalibration] = []  # what `sora-bench calibrate-reuse` learnt
    presets: dict[PresetName, Preset] = {}  # settings by name, as `sora-bench frontier` found them
