"""Writes the trained networks as a diffusers folder that WanPipeline.from_pretrained loads.

python -m sora_export.pocket.export_checkpoint --vae DIR --transformer DIR --out FOLDER [--flow-shift 3]
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from transformers import UMT5EncoderModel

from sora_export.pocket import checkpoint
from sora_export.pocket.models import MAX_SEQUENCE_LENGTH, build_text_encoder, build_transformer
from sora_export.pocket.render import FPS, HEIGHT, NUM_FRAMES, WIDTH
from sora_export.pocket.tokenizer import load_or_train_tokenizer, save_tokenizer
from sora_export.pocket.train_transformer import CHECKPOINT, load_vae


def load_transformer(folder: Path, heads: int, layers: int) -> tuple[WanTransformer3DModel, UMT5EncoderModel]:
    """The averaged transformer and text encoder that `train_transformer` left in `folder`."""
    transformer = build_transformer(heads=heads, num_layers=layers)
    tokenizer = load_or_train_tokenizer(folder)
    text_encoder = build_text_encoder(tokenizer.get_vocab_size())
    checkpoint.load(folder / CHECKPOINT, {"transformer": transformer, "text_encoder": text_encoder}, {})
    return transformer.eval(), text_encoder.eval()


def export(options: argparse.Namespace) -> None:
    """Write every component of the pipeline below options.out, float32 safetensors only."""
    out = Path(options.out)
    vae = load_vae(Path(options.vae))
    transformer, text_encoder = load_transformer(Path(options.transformer), options.heads, options.layers)
    vae.save_pretrained(out / "vae", safe_serialization=True)
    transformer.save_pretrained(out / "transformer", safe_serialization=True)
    text_encoder.save_pretrained(out / "text_encoder", safe_serialization=True)
    save_tokenizer(load_or_train_tokenizer(Path(options.transformer)), out / "tokenizer")
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=options.flow_shift
    )
    scheduler.save_pretrained(out / "scheduler")
    index = {
        "_class_name": "WanPipeline",
        "_diffusers_version": version("diffusers"),
        "boundary_ratio": None,
        "expand_timesteps": True,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    defaults = {
        "license": "Apache-2.0",
        "fps": FPS,
        "max_sequence_length": MAX_SEQUENCE_LENGTH,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "negative_prompt": "",
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": NUM_FRAMES,
    }
    (out / "sora_defaults.json").write_text(json.dumps(defaults, indent=2) + "\n")
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    print(f"{out}: {size / 1e6:.1f} MB of weights")


def main(arguments: list[str] | None = None) -> None:
    """Export the checkpoints named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", required=True, help="folder that train_vae wrote")
    parser.add_argument("--transformer", required=True, help="folder that train_transformer wrote")
    parser.add_argument("--out", required=True, help="the diffusers folder to write")
    parser.add_argument("--flow-shift", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a request that names none")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="likewise")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--layers", type=int, default=6)
    torch.manual_seed(0)
    export(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
