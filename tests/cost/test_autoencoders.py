"""The work of the VAEs against PyTorch's own counter: FLOPs, parameters, and how much memory is alive."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from cost.autoencoder_cases import CASES, Case
from sora_runtime.cost.architectures import (
    vae_allegro,
    vae_cogvideox,
    vae_cosmos,
    vae_dc,
    vae_hunyuan,
    vae_ltx,
    vae_minimax,
    vae_mochi,
    vae_wan,
)
from sora_runtime.cost.work import ComponentWork, Sizes

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

FILES = (
    vae_allegro,
    vae_cogvideox,
    vae_cosmos,
    vae_dc,
    vae_hunyuan,
    vae_ltx,
    vae_minimax,
    vae_mochi,
    vae_wan,
)
AUTOENCODERS = {name: function for file in FILES for name, function in file.AUTOENCODERS.items()}


def module(case: Case, device: str = "meta") -> Any:
    import diffusers

    kind = getattr(diffusers, case.name)  # imported on the CPU: Cosmos' file makes tensors when it is read
    with torch.device(device):
        model = kind(**case.config).eval().to(device)
    for name in ("use_tiling", "use_framewise_encoding", "use_framewise_decoding"):
        if hasattr(model, name) and case.name != "AutoencoderKLAllegro":
            setattr(model, name, False)
    return model


def counted(run: Callable[[], Any]) -> float:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not know the CPU's own fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def estimated(work: ComponentWork, sizes: Sizes) -> float:
    flops = work.flops(sizes)
    return flops["linear"] + flops["attention"] + flops["convolution"]


def samples(case: Case, shape: tuple[int, int, int], device: str = "meta") -> tuple[Any, Any]:
    frames, rows, columns = shape
    latents = torch.zeros(1, case.latent, frames, rows, columns, device=device)
    clip = torch.zeros(1, 3, case.pixel_frames(frames), rows * case.space, columns * case.space, device=device)
    return latents, clip


def alive(model: Any, run: Callable[[], Any]) -> float:
    """The most elements alive at once, of tensors made while running."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        now, most = 0.0, 0.0

        def __init__(self) -> None:
            super().__init__()
            self.sizes: dict[int, float] = {}
            self.weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes and storage._cdata not in self.weights:
                    self.sizes[storage._cdata] = storage.nbytes() / 4.0
                    self.now += storage.nbytes() / 4.0
                    weakref.finalize(storage, self.free, storage._cdata)
                    self.most = max(self.most, self.now)
            return result

        def free(self, key: int) -> None:
            self.now -= self.sizes.pop(key, 0.0)

    watch = Watch()
    with torch.no_grad(), watch:
        run()
    return watch.most


@pytest.mark.parametrize("name", CASES)
def test_flops_and_parameters_are_those_of_the_module(name: str) -> None:
    case = CASES[name]
    work, model = AUTOENCODERS[case.name](case.config), module(case)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert work.decoder.parameters + work.encoder.parameters == pytest.approx(parameters, rel=1e-6)
    for shape in case.shapes:
        latents, clip = samples(case, shape)
        sizes = Sizes(tokens=0, latent_area=shape[1] * shape[2], latent_frames=shape[0])
        # The contract is 1%; only Cosmos' wavelets (a row and a column of padding) are not exact.
        decoded = counted(lambda latents=latents: case.decode(model, latents))
        assert estimated(work.decoder, sizes) == pytest.approx(decoded, rel=2e-4)
        encoded = counted(lambda clip=clip: case.encode(model, clip))
        assert estimated(work.encoder, sizes) == pytest.approx(encoded, rel=2e-4)


def test_half_owns_its_quantization_convolution() -> None:
    case = CASES["wan2.1"]
    work, model = AUTOENCODERS[case.name](case.config), module(case)
    for half, names in ((work.decoder, ("decoder", "post_quant_conv")), (work.encoder, ("encoder", "quant_conv"))):
        owned = sum(tensor.numel() for name in names for tensor in getattr(model, name).parameters())
        assert half.parameters == owned


@pytest.mark.parametrize("name", ["wan-tiny", "hunyuan-tiny"])
def test_count_of_meta_tensors_is_that_of_a_real_run(name: str) -> None:
    case, shape = CASES[name], (2, 3, 5)

    def count(device: str) -> tuple[float, float]:
        model, (latents, clip) = module(case, device), samples(case, shape, device)
        return counted(lambda: case.decode(model, latents)), counted(lambda: case.encode(model, clip))

    assert count("cpu") == count("meta")


def test_wan_at_the_size_of_its_reference_clip() -> None:
    case = CASES["wan2.1"]
    latents, _ = samples(case, (21, 60, 104))
    model = module(case)
    decoded = counted(lambda: case.decode(model, latents))
    sizes = Sizes(tokens=0, latent_area=60 * 104, latent_frames=21)
    assert estimated(AUTOENCODERS[case.name]({}).decoder, sizes) == pytest.approx(decoded, rel=1e-6)
    assert decoded == pytest.approx(275.4e12, rel=1e-3)


@pytest.mark.parametrize("name", sorted(AUTOENCODERS))
def test_missing_keys_have_the_defaults_of_diffusers(name: str) -> None:
    import diffusers

    signature = inspect.signature(getattr(diffusers, name).__init__)
    defaults = {key: value.default for key, value in signature.parameters.items() if key != "self"}
    as_json = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    assert AUTOENCODERS[name](as_json) == AUTOENCODERS[name]({})


# Attention is left out where the CPU's kernel would make the matrix of all pairs, as on a meta tensor; a third is what
# the estimate promises.
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wan2.1", (9, 30, 52)),
        ("wan2.2", (9, 16, 20)),
        ("hunyuan-tiny", (5, 16, 20)),
        ("hunyuan1.5", (5, 4, 5)),
        ("cogvideox", (9, 20, 20)),
        ("ltx-0.9.0", (5, 8, 10)),
        ("ltx-0.9.1", (5, 8, 10)),
        ("ltx2", (5, 8, 10)),
        ("mochi", (5, 16, 20)),
        ("cosmos", (5, 16, 20)),
        ("minimax", (12, 2, 3)),
        ("allegro", (5, 16, 20)),
        ("dc", (5, 8, 10)),
    ],
)
def test_peak_is_what_lives_at_the_worst_moment(name: str, shape: tuple[int, int, int]) -> None:
    case = CASES[name]
    work, model = AUTOENCODERS[case.name](case.config), module(case)
    latents, clip = samples(case, shape)
    sizes = Sizes(tokens=0, latent_area=shape[1] * shape[2], latent_frames=shape[0])
    decoded = alive(model, lambda: case.decode(model, latents))
    encoded = alive(model, lambda: case.encode(model, clip)) + clip.numel()
    assert work.decoder.peak_elements(sizes) == pytest.approx(decoded, rel=0.34)
    assert work.encoder.peak_elements(sizes) == pytest.approx(encoded, rel=0.34)


def test_only_the_clip_grows_with_the_length_of_a_wan_video() -> None:
    decoder = AUTOENCODERS["AutoencoderKLWan"]({}).decoder
    short, long = (decoder.peak_elements(Sizes(tokens=0, latent_area=100, latent_frames=frames)) for frames in (5, 21))
    assert long - short == pytest.approx(2 * 3 * 16 * 4 * 64 * 100)


@pytest.mark.parametrize("name", sorted(AUTOENCODERS))
def test_traffic_is_counted_for_every_operator_that_computes(name: str) -> None:
    sizes = Sizes(tokens=0, latent_area=100, latent_frames=7)
    for half in (AUTOENCODERS[name]({}).decoder, AUTOENCODERS[name]({}).encoder):
        flops, elements = half.flops(sizes), half.elements(sizes)
        assert elements["elementwise"] > 0 and half.layers > 0
        assert all((flops[operator] > 0) == (elements[operator] > 0) for operator in flops)
