"""The work of a network as a short list of terms, each a coefficient times a product of the clip's sizes.

A term form is small enough to be written into a page and evaluated there by the same few lines, so an estimate
has one source wherever it is computed. FLOPs count a multiply-add as two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Operator = Literal["linear", "attention", "convolution", "elementwise"]
OPERATORS: tuple[Operator, ...] = ("linear", "attention", "convolution", "elementwise")

Size = Literal["tokens", "latent_area", "latent_frames"]


@dataclass(frozen=True)
class Sizes:
    """What a clip's shape gives to a term."""

    tokens: int  # video tokens of one transformer evaluation
    latent_area: int  # rows x columns of the VAE's latents
    latent_frames: int  # frames of the VAE's latents

    def product(self, names: tuple[Size, ...]) -> float:
        """The product of the named sizes; 1 for none."""
        value = 1.0
        for name in names:
            value *= getattr(self, name)
        return value


@dataclass(frozen=True)
class Term:
    """`flops` and `elements` for each unit of the product of the sizes in `of`."""

    operator: Operator
    flops: float = 0.0
    elements: float = 0.0  # activations read plus written, not bytes: their width is the engine's
    of: tuple[Size, ...] = ()


@dataclass(frozen=True)
class ComponentWork:
    """One evaluation of one network.

    Args:
        parameters: weights that lie in memory (all experts).
        read: weights that one evaluation reads (the active ones); 0 means all of `parameters`.
        layers: blocks in sequence, for the overhead that each costs whatever its size.
        terms: flops and activation traffic.
        peak: activations alive at the worst moment, as terms of which only `elements` and `of` count.
    """

    parameters: float
    layers: int
    terms: tuple[Term, ...]
    peak: tuple[Term, ...] = ()
    read: float = 0.0

    def flops(self, sizes: Sizes) -> dict[Operator, float]:
        """FLOPs of one evaluation by operator class."""
        return _total(self.terms, sizes, "flops")

    def elements(self, sizes: Sizes) -> dict[Operator, float]:
        """Activation elements moved by one evaluation, by operator class."""
        return _total(self.terms, sizes, "elements")

    def peak_elements(self, sizes: Sizes) -> float:
        """Activation elements alive at the worst moment."""
        return sum(term.elements * sizes.product(term.of) for term in self.peak)


@dataclass(frozen=True)
class Load:
    """The work of one evaluation over given sizes, summed by operator class."""

    flops: dict[Operator, float]
    elements: dict[Operator, float]
    peak_elements: float
    parameters: float
    read: float
    layers: int

    @classmethod
    def of(cls, work: ComponentWork, sizes: Sizes, *, repeated: float = 1.0, peak: float = 1.0) -> Load:
        """Sum a work's terms.

        Args:
            work: of the network.
            sizes: of the clip.
            repeated: how much of the work is done more than once (tiles that overlap).
            peak: the share of the activations that is alive at once (tiles).
        """
        return cls(
            {name: value * repeated for name, value in work.flops(sizes).items()},
            {name: value * repeated for name, value in work.elements(sizes).items()},
            work.peak_elements(sizes) * peak,
            work.parameters,
            work.read,
            work.layers,
        )


def _total(terms: tuple[Term, ...], sizes: Sizes, field_name: str) -> dict[Operator, float]:
    totals: dict[Operator, float] = dict.fromkeys(OPERATORS, 0.0)
    for term in terms:
        totals[term.operator] += getattr(term, field_name) * sizes.product(term.of)
    return totals


@dataclass
class WorkBuilder:
    """Collects the terms of a network in the words of its layers.

    `rows` is how many positions a layer runs over: a polynomial of the sizes, {of: coefficient}, for example
    `{("tokens",): 1, (): 226}` for a joint sequence of video and 226 text tokens.
    """

    parameters: float = 0.0
    layers: int = 0
    terms: dict[tuple[Operator, tuple[Size, ...]], list[float]] = field(default_factory=dict)

    def linear(self, rows: Rows, inputs: int, outputs: int, *, count: float = 1, bias: bool = True) -> None:
        """`count` matrix products [rows, inputs] x [inputs, outputs], with their weights."""
        self.parameters += count * (inputs * outputs + (outputs if bias else 0))
        self._add("linear", rows, 2.0 * count * inputs * outputs, count * (inputs + outputs))

    def attention(
        self, queries: Rows, keys: Rows, width: int, *, count: float = 1, key_width: int | None = None
    ) -> None:
        """`count` attentions of `width` = heads x head size (`key_width` where keys have fewer heads)."""
        self._add("attention", multiply(queries, keys), 4.0 * count * width, 0.0)
        self._add("attention", queries, 0.0, 2.0 * count * width)
        self._add("attention", keys, 0.0, 2.0 * count * (key_width or width))

    def convolution(
        self, rows: Rows, inputs: int, outputs: int, kernel: int, *, count: float = 1, bias: bool = True
    ) -> None:
        """`count` convolutions that write `rows` positions; `kernel` is the product of the kernel's sizes."""
        self.parameters += count * (inputs * outputs * kernel + (outputs if bias else 0))
        self._add("convolution", rows, 2.0 * count * inputs * outputs * kernel, count * (inputs + outputs))

    def elementwise(self, rows: Rows, width: float, *, passes: float, parameters: float = 0.0) -> None:
        """Norms, activations, residuals: `passes` reads and writes of [rows, width]; a few FLOPs each."""
        self.parameters += parameters
        self._add("elementwise", rows, passes * width, passes * width)

    def _add(self, operator: Operator, rows: Rows, flops: float, elements: float) -> None:
        for of, count in rows.items():
            cell = self.terms.setdefault((operator, of), [0.0, 0.0])
            cell[0] += flops * count
            cell[1] += elements * count

    def build(self, *, peak: Iterable[Term] = (), read: float = 0.0, copies: int = 1) -> ComponentWork:
        """The finished work; `copies` networks of which one runs at a time (experts by timestep)."""
        terms = tuple(Term(operator, flops, elements, of) for (operator, of), (flops, elements) in self.terms.items())
        return ComponentWork(self.parameters * copies, self.layers, terms, tuple(peak), read or self.parameters)


Rows = dict[tuple[Size, ...], float]


def multiply(a: Rows, b: Rows) -> Rows:
    """The product of two polynomials of the sizes."""
    product: Rows = {}
    for of_a, x in a.items():
        for of_b, y in b.items():
            of = tuple(sorted((*of_a, *of_b)))
            product[of] = product.get(of, 0.0) + x * y
    return product
