"""Exports Wan 2.2 A14B, two experts of 14.3 billion parameters, and says what memory, time and disk it took.

    python -m benchmarks.export_14b

The checkpoint has the real configurations and the real files' names, sizes and layout; its weights are holes of a
sparse file, because an export reads none of them. It is what `sora-bench build` does to a downloaded one.
"""

import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CLIP = {"width": 832, "height": 480, "num_frames": 81}
SHARD_BYTES = 10_000_000_000

# https://huggingface.co/Wan-AI/Wan2.2-T2V-A14B-Diffusers: transformer/config.json, transformer_2/config.json.
TRANSFORMER: dict[str, Any] = {
    "patch_size": [1, 2, 2], "num_attention_heads": 40, "attention_head_dim": 128, "in_channels": 16,
    "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 13824, "num_layers": 40,
    "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "rope_max_seq_len": 1024,
}  # fmt: skip
# google/umt5-xxl's encoder.
TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip
FLOW = {
    "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True,
    "flow_shift": 3.0, "num_train_timesteps": 1000,
}  # fmt: skip
INDEX = {
    "_class_name": "WanPipeline", "_diffusers_version": "0.35.0", "boundary_ratio": 0.875,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"], "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"], "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"],
}  # fmt: skip


def save_sparse(folder: Path, shapes: Mapping[str, tuple[int, ...]], stem: str) -> int:
    """Writes bfloat16 safetensors whose data are holes, in shards as save_pretrained cuts them; returns parameters."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size, parameters = 0, 0
    for name, shape in shapes.items():
        length = 2
        for extent in shape:
            length *= extent
        if size + length > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size, parameters = size + length, parameters + length // 2
    names = [f"{stem}-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
    weight_map = {}
    for file, shard in zip(names, shards, strict=True):
        _write_sparse(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 2 * parameters}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return parameters


def _write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    header, offset = {}, 0
    for name, shape in shapes.items():
        length = 2
        for extent in shape:
            length *= extent
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def save_checkpoint(folder: Path) -> int:
    """Writes the checkpoint and returns its transformers' parameters, both experts together."""
    parameters = 0
    for part, (config, stem, shapes) in _parts().items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        count = save_sparse(folder / part, shapes, stem)
        parameters += count if part.startswith("transformer") else 0
    for part in ("scheduler", "tokenizer"):
        (folder / part).mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(FLOW))
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}}
    (folder / "tokenizer/tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return parameters


def _parts() -> dict[str, tuple[dict[str, Any], str, dict[str, tuple[int, ...]]]]:
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(TRANSFORMER)
        vae = AutoencoderKLWan()
        text = UMT5EncoderModel(UMT5Config(**TEXT_ENCODER))
    expert = ({"_class_name": "WanTransformer3DModel", **TRANSFORMER}, "diffusion_pytorch_model", _shapes(transformer))
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    return {
        "transformer": expert,
        "transformer_2": expert,
        "vae": ({"_class_name": "AutoencoderKLWan", **config}, "diffusion_pytorch_model", _shapes(vae)),
        "text_encoder": (TEXT_ENCODER, "model", _shapes(text)),
    }


def _shapes(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


_BUILD = """
import sys
from sora_runtime.cli.app import main
try:
    main()
finally:
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""


def measure() -> dict[str, Any]:
    """Builds one bucket in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="sora-14b-") as folder:
        source, out = Path(folder) / "Wan2.2-T2V-A14B", Path(folder) / "bundle"
        parameters = save_checkpoint(source)
        size = f"{CLIP['width']}x{CLIP['height']}"
        command = ["build", str(source), "--out", str(out), "--size", size, "--frames", str(CLIP["num_frames"])]
        start = time.perf_counter()
        last = ""
        for line in _lines([sys.executable, "-c", _BUILD, *command, "--no-parity"]):
            print(f"{time.perf_counter() - start:6.0f} s  {line}", file=sys.stderr, flush=True)
            last = line if line.startswith("VmHWM") else last
        seconds = time.perf_counter() - start
        checkpoint = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
        added = {
            str(path.relative_to(out)): path.stat().st_size
            for path in sorted(out.rglob("*"))
            if path.is_file() and path.relative_to(out) not in checkpoint
        }
    return {
        "clip": f"{size}, {CLIP['num_frames']} frames",
        "parameters": parameters,
        "seconds": seconds,
        "peak_host_memory_mib": int(last.split()[1]) / 1024,
        "bytes_added": sum(added.values()),
        "files": added,
    }


def _lines(command: list[str]) -> Iterator[str]:
    with subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield line.rstrip()
    if process.returncode:
        raise SystemExit(f"the build failed with {process.returncode}")


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    return "\n".join(
        [
            "| Wan 2.2 A14B, two experts, bfloat16 | |",
            "|---|---|",
            f"| parameters of the transformers | {result['parameters'] / 1e9:.1f} billion |",
            f"| shape | {result['clip']} |",
            f"| peak memory of the build | {result['peak_host_memory_mib'] / 1024:.2f} GiB |",
            f"| time, hashing every weight included | {result['seconds']:.0f} s |",
            f"| added to the checkpoint | {result['bytes_added'] / 1e6:.2f} MB in {len(result['files'])} files |",
        ]
    )


if __name__ == "__main__":
    print(table(measure()))
