"""The shipped model against diffusers: same latents, same embeddings, same scheduler settings.

diffusers runs the checkpoint in torch in float32, this runtime its graphs in ONNX Runtime; both round every
operation to float32, in another order, and the sampler carries that on. 1e-3 relative L2 and 50 dB are the
bounds the project promises.
"""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)

import sora_runtime as sora
from prompts import PROMPT
from sora_runtime.text import TextUse

SEED = 11


@pytest.fixture(scope="module")
def pipeline(runtime: sora.Runtime) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = WanPipeline.from_pretrained(runtime.bundle.root)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduler_of(solver: str, shift: float) -> Any:
    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    if solver == "unipc":
        return UniPCMultistepScheduler(solver_order=2, **flow)
    return DPMSolverMultistepScheduler(solver_order=2, algorithm_type="dpmsolver++", **flow)


def embeds(runtime: sora.Runtime, prompt: str) -> torch.Tensor:
    use = TextUse()
    encoder = runtime.text_encoders.encoders["text_encoder"]
    outputs = encoder.embed(encoder.tokenize(prompt, "prompt", use), use)
    return torch.from_numpy(outputs["encoder_hidden_states"].copy())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def diffusers_latents(pipe: Any, runtime: sora.Runtime, noise: np.ndarray, **arguments: Any) -> torch.Tensor:
    defaults = runtime.bundle.manifest.facts.defaults
    return pipe(
        prompt_embeds=embeds(runtime, PROMPT),
        negative_prompt_embeds=embeds(runtime, defaults.negative_prompt),
        latents=torch.from_numpy(noise.copy()),
        height=defaults.height,
        width=defaults.width,
        num_frames=defaults.num_frames,
        max_sequence_length=runtime.bundle.manifest.components.text_encoder.max_sequence_length,
        output_type="latent",
        **arguments,
    ).frames


def diffusers_frames(pipe: Any, latents: torch.Tensor) -> np.ndarray:
    """The decoding of WanPipeline, unchunked as far as its caller can see, as rgb8."""
    config = pipe.vae.config
    mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        video = pipe.vae.decode(latents * std + mean, return_dict=False)[0]
    frames = pipe.video_processor.postprocess_video(video, output_type="np")[0]
    return np.rint(frames * 255).astype(np.uint8)


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("solver", ["euler", "unipc", "dpm++2m"])
def test_latents_and_frames_equal_diffusers(
    runtime: sora.Runtime, pipeline: Any, clip: sora.Clip, solver: str, steps: int, guidance_scale: float
) -> None:
    noise = np.random.default_rng(SEED).standard_normal(clip.latents.shape, np.float32)
    shift = float(runtime.bundle.read_json(runtime.bundle.manifest.scheduler)["flow_shift"])
    pipeline.scheduler = scheduler_of(solver, shift)
    theirs = diffusers_latents(pipeline, runtime, noise, num_inference_steps=steps, guidance_scale=guidance_scale)
    ours = runtime.generate(
        PROMPT, latents=noise, solver=solver, num_inference_steps=steps, guidance_scale=guidance_scale
    )
    reference = theirs.numpy().astype(np.float64)
    relative = np.linalg.norm(ours.latents - reference) / np.linalg.norm(reference)
    frames = psnr(ours.frames, diffusers_frames(pipeline, theirs))
    print(f"{solver} {steps} steps guidance {guidance_scale:g}: relative L2 {relative:.1e}, {frames:.1f} dB")
    assert relative <= 1e-3
    assert frames >= 50


def test_prompt_embeds_equal_diffusers(runtime: sora.Runtime, pipeline: Any) -> None:
    length = runtime.bundle.manifest.components.text_encoder.max_sequence_length
    theirs, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False, max_sequence_length=length)
    ours = embeds(runtime, PROMPT)
    assert torch.linalg.norm(ours - theirs) / torch.linalg.norm(theirs) <= 1e-5


def test_streamed_frames_equal_the_whole_decoder(runtime: sora.Runtime, pipeline: Any, clip: sora.Clip) -> None:
    """In float, before rounding to rgb8: the chunked graphs against diffusers' decode of the whole clip."""
    decoder = next(iter(runtime._stages.values())).decoder
    chunks = [frames.copy() for frames in decoder.chunks(clip.latents)]
    config = pipeline.vae.config
    mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        whole = pipeline.vae.decode(torch.from_numpy(clip.latents) * std + mean, return_dict=False)[0]
    # diffusers clamps what it decodes; the graphs leave that to the conversion to rgb8.
    ours = np.concatenate(chunks, axis=1).clip(-1, 1)
    print(f"largest difference {np.abs(ours - whole[0].numpy()).max():.1e}")
    assert np.abs(ours - whole[0].numpy()).max() <= 1e-5
    assert np.linalg.norm(ours - whole[0].numpy()) / np.linalg.norm(whole) <= 1e-5
