"""Prompts to embeddings exactly as WanPipeline makes them: padded, encoded, zeroed beyond the real tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from sora_export.pocket.models import MAX_SEQUENCE_LENGTH, PAD_TOKEN_ID


class PromptEncoder(nn.Module):
    """The tokenizer and the text encoder of wan-pocket as one module."""

    def __init__(self, tokenizer: Tokenizer, text_encoder: UMT5EncoderModel) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self._ids: dict[str, list[int]] = {}

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings [B, MAX_SEQUENCE_LENGTH, TEXT_DIM]; longer prompts are cut."""
        ids = [self._lookup(prompt) for prompt in prompts]
        longest = max(map(len, ids))
        device = self.text_encoder.device
        input_ids = torch.tensor([row + [PAD_TOKEN_ID] * (longest - len(row)) for row in ids], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=device)
        embeds = self.text_encoder(input_ids, mask).last_hidden_state * mask[:, :, None]
        # encoding only up to the longest prompt is equal: masked positions add nothing, later ones are zero
        return nn.functional.pad(embeds, (0, 0, 0, MAX_SEQUENCE_LENGTH - longest))

    def _lookup(self, prompt: str) -> list[int]:
        if prompt not in self._ids:
            ids = self.tokenizer.encode(prompt).ids  # ends in </s>, which a cut must keep
            self._ids[prompt] = ids if len(ids) <= MAX_SEQUENCE_LENGTH else [*ids[: MAX_SEQUENCE_LENGTH - 1], ids[-1]]
        return self._ids[prompt]
