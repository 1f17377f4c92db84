"""Draws the README's contact sheet: eight held-out prompts, one row of frames each.

python -m benchmarks.contact_sheet [OUT.png]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sora_export.pocket.captions import held_out_prompts
from sora_runtime import Runtime

OUT = Path(__file__).parent / "results" / "contact_sheet.png"
CLIPS = 8
SHOWN = 7  # frames of each clip, first to last
SCALE = 2
GAP, CAPTION, MARGIN = 6, 24, 12


def strip(frames: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] to one row of SHOWN enlarged frames, uint8 [H', W', 3]."""
    chosen = frames[np.linspace(0, len(frames) - 1, SHOWN).round().astype(int)]
    tiles = [np.kron(frame, np.ones((SCALE, SCALE, 1), np.uint8)) for frame in chosen]
    gap = np.full((tiles[0].shape[0], GAP, 3), 255, np.uint8)
    row = [part for tile in tiles for part in (tile, gap)][:-1]
    return np.concatenate(row, axis=1)


def main(out: Path = OUT) -> None:
    """Make the clips with default settings, seed 0, and draw them; no clip is chosen for its looks."""
    runtime = Runtime.load("wan-pocket")
    prompts = [prompt for prompt, _ in held_out_prompts(CLIPS)]
    strips = [strip(runtime.generate(prompt, seed=0).frames) for prompt in prompts]
    height, width = strips[0].shape[:2]
    sheet = Image.new("RGB", (width + 2 * MARGIN, CLIPS * (height + CAPTION + GAP) + 2 * MARGIN - GAP), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for i, (prompt, image) in enumerate(zip(prompts, strips, strict=True)):
        top = MARGIN + i * (height + CAPTION + GAP)
        draw.text((MARGIN, top), prompt, fill=(30, 30, 30), font=font)
        sheet.paste(Image.fromarray(image), (MARGIN, top + CAPTION))
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
