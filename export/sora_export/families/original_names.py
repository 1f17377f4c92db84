"""What the original code of each model calls the modules that diffusers renamed: adapters come in both namings."""

from __future__ import annotations

from sora_export.adapter_modules import Renaming

WAN = (
    Renaming(r"\.attn1\.", ".self_attn."),
    Renaming(r"\.attn2\.", ".cross_attn."),
    Renaming(r"\.to_([qkv])$", r".\1"),
    Renaming(r"\.to_out\.0$", ".o"),
    Renaming(r"\.add_([kv])_proj$", r".\1_img"),
    Renaming(r"\.norm_added_k$", ".norm_k_img"),
    Renaming(r"^(blocks\.\d+)\.norm2$", r"\1.norm3"),
    Renaming(r"\.ffn\.net\.0\.proj$", ".ffn.0"),
    Renaming(r"\.ffn\.net\.2$", ".ffn.2"),
    Renaming(r"\bscale_shift_table$", "modulation"),
    Renaming(r"^modulation$", "head.modulation"),
    Renaming(r"^proj_out$", "head.head"),
    Renaming(r"^condition_embedder\.time_proj$", "time_projection.1"),
    Renaming(r"^condition_embedder\.(time|text)_embedder\.linear_1$", r"\1_embedding.0"),
    Renaming(r"^condition_embedder\.(time|text)_embedder\.linear_2$", r"\1_embedding.2"),
    Renaming(r"^condition_embedder\.image_embedder\.norm1$", "img_emb.proj.0"),
    Renaming(r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj$", "img_emb.proj.1"),
    Renaming(r"^condition_embedder\.image_embedder\.ff\.net\.2$", "img_emb.proj.3"),
    Renaming(r"^condition_embedder\.image_embedder\.norm2$", "img_emb.proj.4"),
)
"""WanModel of github.com/Wan-Video/Wan2.1, wan/modules/model.py."""

LTX = (
    Renaming(r"^proj_in$", "patchify_proj"),
    Renaming(r"^time_embed\.", "adaln_single."),
    Renaming(r"\.norm_q$", ".q_norm"),
    Renaming(r"\.norm_k$", ".k_norm"),
)
"""Transformer3DModel of github.com/Lightricks/LTX-Video, ltx_video/models/transformers/transformer3d.py."""

HUNYUAN = (
    # The refiner of the prompt comes first: its names hold those of the blocks.
    Renaming(r"^context_embedder\.token_refiner\.refiner_blocks\.", "txt_in.individual_token_refiner.blocks."),
    Renaming(r"^(txt_in\..*)\.attn\.to_q$", r"\1.self_attn_qkv", 0),
    Renaming(r"^(txt_in\..*)\.attn\.to_k$", r"\1.self_attn_qkv", 1),
    Renaming(r"^(txt_in\..*)\.attn\.to_v$", r"\1.self_attn_qkv", 2),
    Renaming(r"^(txt_in\..*)\.attn\.to_out\.0$", r"\1.self_attn_proj"),
    Renaming(r"^(txt_in\..*)\.norm_out\.linear$", r"\1.adaLN_modulation.1"),
    Renaming(r"^(txt_in\..*)\.ff\.net\.0\.proj$", r"\1.mlp.fc1"),
    Renaming(r"^(txt_in\..*)\.ff\.net\.2$", r"\1.mlp.fc2"),
    Renaming(r"^context_embedder\.proj_in$", "txt_in.input_embedder"),
    Renaming(r"^context_embedder\.time_text_embed\.timestep_embedder\.linear_1$", "txt_in.t_embedder.mlp.0"),
    Renaming(r"^context_embedder\.time_text_embed\.timestep_embedder\.linear_2$", "txt_in.t_embedder.mlp.2"),
    Renaming(r"^context_embedder\.time_text_embed\.text_embedder\.", "txt_in.c_embedder."),
    Renaming(r"^x_embedder\.", "img_in."),
    Renaming(r"^time_text_embed\.timestep_embedder\.linear_1$", "time_in.mlp.0"),
    Renaming(r"^time_text_embed\.timestep_embedder\.linear_2$", "time_in.mlp.2"),
    Renaming(r"^time_text_embed\.guidance_embedder\.linear_1$", "guidance_in.mlp.0"),
    Renaming(r"^time_text_embed\.guidance_embedder\.linear_2$", "guidance_in.mlp.2"),
    Renaming(r"^time_text_embed\.text_embedder\.linear_1$", "vector_in.in_layer"),
    Renaming(r"^time_text_embed\.text_embedder\.linear_2$", "vector_in.out_layer"),
    Renaming(r"^transformer_blocks\.", "double_blocks."),
    Renaming(r"^(double_blocks\.\d+)\.attn\.to_q$", r"\1.img_attn_qkv", 0),
    Renaming(r"^(double_blocks\.\d+)\.attn\.to_k$", r"\1.img_attn_qkv", 1),
    Renaming(r"^(double_blocks\.\d+)\.attn\.to_v$", r"\1.img_attn_qkv", 2),
    Renaming(r"^(double_blocks\.\d+)\.attn\.add_q_proj$", r"\1.txt_attn_qkv", 0),
    Renaming(r"^(double_blocks\.\d+)\.attn\.add_k_proj$", r"\1.txt_attn_qkv", 1),
    Renaming(r"^(double_blocks\.\d+)\.attn\.add_v_proj$", r"\1.txt_attn_qkv", 2),
    Renaming(r"^(double_blocks\.\d+)\.attn\.to_out\.0$", r"\1.img_attn_proj"),
    Renaming(r"^(double_blocks\.\d+)\.attn\.to_add_out$", r"\1.txt_attn_proj"),
    Renaming(r"^(double_blocks\.\d+)\.norm1\.linear$", r"\1.img_mod.linear"),
    Renaming(r"^(double_blocks\.\d+)\.norm1_context\.linear$", r"\1.txt_mod.linear"),
    Renaming(r"^(double_blocks\.\d+)\.ff\.net\.0\.proj$", r"\1.img_mlp.fc1"),
    Renaming(r"^(double_blocks\.\d+)\.ff\.net\.2$", r"\1.img_mlp.fc2"),
    Renaming(r"^(double_blocks\.\d+)\.ff_context\.net\.0\.proj$", r"\1.txt_mlp.fc1"),
    Renaming(r"^(double_blocks\.\d+)\.ff_context\.net\.2$", r"\1.txt_mlp.fc2"),
    Renaming(r"^single_transformer_blocks\.", "single_blocks."),
    Renaming(r"^(single_blocks\.\d+)\.attn\.to_q$", r"\1.linear1", 0),
    Renaming(r"^(single_blocks\.\d+)\.attn\.to_k$", r"\1.linear1", 1),
    Renaming(r"^(single_blocks\.\d+)\.attn\.to_v$", r"\1.linear1", 2),
    Renaming(r"^(single_blocks\.\d+)\.proj_mlp$", r"\1.linear1", 3),
    Renaming(r"^(single_blocks\.\d+)\.proj_out$", r"\1.linear2"),
    Renaming(r"^(single_blocks\.\d+)\.norm\.linear$", r"\1.modulation.linear"),
    Renaming(r"^proj_out$", "final_layer.linear"),
)
"""HYVideoDiffusionTransformer of github.com/Tencent-Hunyuan/HunyuanVideo, hyvideo/modules/models.py. The modulation of
its last layer is left out: its rows are in another order."""
