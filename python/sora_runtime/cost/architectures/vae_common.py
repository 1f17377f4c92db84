"""What the VAE files share: the feature map that a layer runs over, and the blocks that most of them are made of.

The work is that of one whole clip, batch 1, neither tiled in space nor cut into overlapping pieces of time: both
repeat the work of the overlaps. Each layer counts every frame that it writes once; a causal VAE that decodes in pieces
and keeps the last frames of each layer's input for the next piece does the same work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sora_runtime.cost.work import ComponentWork, Rows, Term, WorkBuilder, multiply

PAD = 2.0  # passes over the input of a convolution that is padded by a copy
ACTIVATION = 2.0
RESIDUAL = 3.0


@dataclass(frozen=True)
class Grid:
    """A feature map: `area` positions for each latent one, in `frames` x latent frames + `extra` frames."""

    area: float = 1.0
    frames: float = 1.0
    extra: float = 0.0

    @property
    def rows(self) -> Rows:
        """All positions."""
        rows: Rows = {
            ("latent_area", "latent_frames"): self.area * self.frames,
            ("latent_area",): self.area * self.extra,
        }
        return {of: count for of, count in rows.items() if count}

    @property
    def plane(self) -> Rows:
        """The positions of one frame."""
        return {("latent_area",): self.area}

    @property
    def line(self) -> Rows:
        """The frames of one position."""
        return {("latent_frames",): self.frames, (): self.extra}

    @property
    def later(self) -> Grid:
        """All frames but the first."""
        return Grid(self.area, self.frames, self.extra - 1.0)


def causal(space: int, time: int) -> Grid:
    """The map `space` times as wide and as high as the latents, whose first latent frame stands for one frame."""
    return Grid(float(space * space), float(time), 1.0 - time)


def option(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """`config[name]`; diffusers' own default where it is missing or null."""
    value = config.get(name)
    return default if value is None else value


@dataclass(frozen=True)
class Norm:
    """A normalization: reads and writes of the unfused implementation, and parameters for each channel."""

    passes: float
    parameters: float


GROUP_NORM = Norm(3.0, 2.0)
# Square, mean, root and product are separate kernels.
PLAIN_RMS_NORM = Norm(5.0, 0.0)
# torch.nn.functional.normalize, then three more products and sums (scale, weight, bias of zero).
SCALED_RMS_NORM = Norm(9.0, 1.0)


@dataclass
class AutoencoderBuilder(WorkBuilder):
    """A half of a VAE, built layer after layer: `grid` and `channels` are those of the current feature map."""

    grid: Grid = field(default_factory=Grid)
    channels: int = 0
    norm: Norm = GROUP_NORM
    causal: bool = True  # the first latent frame stands for one frame at every resolution
    worst: tuple[float, Grid] = (0.0, Grid())  # channels alive at the worst moment, and the map they have
    beside: float = 0.0  # channels of the current map that a surrounding block keeps
    cached: float = 0.0  # elements for each latent position: the two last frames of the input of each 3D convolution

    def resize(self, space: float = 1.0, time: float = 1.0) -> None:
        """Makes the current map `space` times as wide and as high, with `time` times as many frames."""
        frames = self.grid.frames * time
        extra = 1.0 - frames if self.causal else self.grid.extra * time
        self.grid = Grid(self.grid.area * space * space, frames, extra)

    def convolve(self, outputs: int, kernel: int, *, grid: Grid | None = None, bias: bool = True) -> None:
        """A convolution of the current map that writes `grid` (the current one by default), padded by a copy."""
        rows = (grid or self.grid).rows
        self.convolution(rows, self.channels, outputs, kernel, bias=bias)
        if kernel > 1:
            self.elementwise(self.grid.rows, self.channels, passes=PAD)
        if kernel in (3, 27):
            self.cached += 2.0 * self.channels * self.grid.area
        self.channels = outputs

    def depthwise(self, channels: int, kernel: int, *, bias: bool = True) -> None:
        """A convolution of each channel by itself."""
        self.parameters += channels * (kernel + (1 if bias else 0))
        self._add("convolution", self.grid.rows, 2.0 * channels * kernel, 2.0 * channels)

    def activate(self, channels: int) -> None:
        """A normalization and a nonlinearity."""
        passes = self.norm.passes + ACTIVATION
        self.elementwise(self.grid.rows, channels, passes=passes, parameters=self.norm.parameters * channels)

    def resnet(self, outputs: int, *, kernel: int = 27) -> None:
        """Norm, activation, convolution, twice, plus the input (by a 1x1 convolution where the width changes)."""
        inputs = self.channels
        self.activate(inputs)
        self.convolve(outputs, kernel)
        self.activate(outputs)
        self.convolve(outputs, kernel)
        self.shortcut(inputs, outputs)
        # The block's input (twice: its caller holds it too while a convolution is fed), the convolution's input, its
        # padded copy, and its result.
        copies = 3.0 if kernel == 27 else 2.0
        self.hold(inputs + copies * max(inputs, outputs) + outputs)

    def shortcut(self, inputs: int, outputs: int) -> None:
        """The end of a residual block: adds its input."""
        if inputs != outputs:
            self.convolution(self.grid.rows, inputs, outputs, 1)
        self.elementwise(self.grid.rows, outputs, passes=RESIDUAL)
        self.layers += 1

    def attend(self, keys: Rows, *, bias: bool = True) -> None:
        """Self-attention of the current map's positions, each to `keys` others; `bias`: of queries, keys and values.

        Projections count as matrix products also where the module has 1x1 convolutions.
        """
        rows, width = self.grid.rows, self.channels
        passes = self.norm.passes + RESIDUAL
        self.elementwise(rows, width, passes=passes, parameters=self.norm.parameters * width)
        self.linear(rows, width, width, count=3, bias=bias)
        self._add("attention", multiply(rows, keys), 4.0 * width, 0.0)
        self._add("attention", rows, 0.0, 4.0 * width)
        self.linear(rows, width, width)
        self.hold(5.0 * width)  # the residual, queries, keys, values, result
        self.layers += 1

    def hold(self, channels: float) -> None:
        """Notes that `channels` of the current map are alive at once."""
        held, grid = self.worst
        channels += self.beside
        if channels * self.grid.area * self.grid.frames > held * grid.area * grid.frames:
            self.worst = (channels, self.grid)

    def finish(self, pixels: Grid, channels: int = 3) -> ComponentWork:
        """The work; the clip itself (`channels` of `pixels`) is alive beside the worst feature maps."""
        held, grid = self.worst
        maps = [Term("elementwise", elements=held * count, of=of) for of, count in grid.rows.items()]
        clip = [Term("elementwise", elements=channels * count, of=of) for of, count in pixels.rows.items()]
        return self.build(peak=[*maps, *clip])

    def finish_chunked(self, pixels: Grid, latent_frames: int, channels: int = 3) -> ComponentWork:
        """The work of a VAE that takes `latent_frames` at a time and keeps feature caches between them.

        Joining a piece to the clip so far copies the clip, so two of it are alive.
        """
        held, grid = self.worst
        elements = held * grid.area * grid.frames * latent_frames + self.cached
        maps = [Term("elementwise", elements=elements, of=("latent_area",))]
        clip = [Term("elementwise", elements=2.0 * channels * count, of=of) for of, count in pixels.rows.items()]
        return self.build(peak=[*maps, *clip])
