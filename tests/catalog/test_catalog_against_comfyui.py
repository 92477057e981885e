"""Families by the tensors that ComfyUI's own networks have, in a process that has ComfyUI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from intelligent_generation.core.catalog import (
    SafetensorsHeader,
    TensorInfo,
    detect_checkpoint,
    family,
    family_of_comfy_class,
)
from intelligent_generation.scripts import launch_comfyui
from intelligent_generation.scripts.comfyui import find_comfyui

LDM = "comfy.ldm."
UNET = (LDM + "modules.diffusionmodules.openaimodel", "UNetModel")
UNET_FACTS = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True,
    "legacy": False, "model_channels": 320, "num_heads": -1,
}  # fmt: skip
SD15 = UNET_FACTS | {
    "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "context_dim": 768, "num_heads": 8,
    "num_head_channels": -1, "transformer_depth": [1] * 6 + [0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 9 + [0] * 3, "use_linear_in_transformer": False,
    "adm_in_channels": None,
}  # fmt: skip
SD2 = SD15 | {
    "context_dim": 1024, "num_heads": -1, "num_head_channels": 64,
    "use_linear_in_transformer": True,
}  # fmt: skip
SDXL = UNET_FACTS | {
    "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "context_dim": 2048,
    "num_head_channels": 64, "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "use_linear_in_transformer": True, "adm_in_channels": 2816, "num_classes": "sequential",
}  # fmt: skip
MMDIT = (LDM + "modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper")
SD3 = {
    "input_size": None, "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 24,
    "pos_embed_scaling_factor": None, "pos_embed_max_size": 192, "num_patches": 36864,
    "adm_in_channels": 2048, "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536},
    },
}  # fmt: skip
FLUX_CLASS = (LDM + "flux.model", "Flux")
FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 2, "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
FLUX2 = FLUX | {
    "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 15360,
    "hidden_size": 6144, "mlp_ratio": 3.0, "num_heads": 48, "axes_dim": [32, 32, 32, 32],
    "theta": 2000, "patch_size": 1, "qkv_bias": False, "txt_ids_dims": [3],
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
}  # fmt: skip
CHROMA = {name: FLUX[name] for name in FLUX if name != "guidance_embed"} | {
    "vec_in_dim": None, "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 3072,
    "hidden_dim": 5120, "n_layers": 5,
}  # fmt: skip
LUMINA_CLASS = (LDM + "lumina.model", "NextDiT")
LUMINA = {
    "patch_size": 2, "in_channels": 16, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 2,
    "n_heads": 24, "n_kv_heads": 8, "qk_norm": True, "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
}  # fmt: skip

COSMOS = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "concat_padding_mask": True,
    "model_channels": 2048, "num_blocks": 2, "num_heads": 16, "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d", "pos_emb_learnable": False, "use_adaln_lora": True,
    "adaln_lora_dim": 256,
}  # fmt: skip

NETWORKS: list[tuple[str, str | None, tuple[str, str], dict[str, Any]]] = [
    ("sd15", None, UNET, SD15),
    ("sd15", "inpaint", UNET, SD15 | {"in_channels": 9}),
    ("sd2", None, UNET, SD2),
    ("sdxl", None, UNET, SDXL),
    ("sdxl", "inpaint", UNET, SDXL | {"in_channels": 9}),
    ("flux-dev", None, FLUX_CLASS, FLUX),
    ("flux-schnell", None, FLUX_CLASS, FLUX | {"guidance_embed": False}),
    ("flux-fill", None, FLUX_CLASS, FLUX | {"in_channels": 96}),
    ("sd3", None, MMDIT, SD3),
    ("sd35", None, MMDIT, SD3 | {"depth": 38, "qk_norm": "rms"}),
    ("sd35", "medium", MMDIT, SD3 | {"qk_norm": "rms", "x_block_self_attn_layers": [0, 1]}),
    ("flux2", None, FLUX_CLASS, FLUX2),
    (
        "flux2-klein", None, FLUX_CLASS,
        FLUX2 | {"hidden_size": 3072, "num_heads": 24, "context_in_dim": 7680,
                 "guidance_embed": False},
    ),
    ("chroma", None, (LDM + "chroma.model", "Chroma"), CHROMA),
    (
        "chroma", "radiance", (LDM + "chroma_radiance.model", "ChromaRadiance"),
        CHROMA | {"in_channels": 3, "out_channels": 3, "patch_size": 16, "nerf_hidden_size": 64,
                  "nerf_mlp_ratio": 4, "nerf_depth": 4, "nerf_max_freqs": 8,
                  "nerf_tile_size": 512, "nerf_final_head_type": "conv",
                  "nerf_embedder_dtype": None, "use_x0": False,
                  "use_sequential_txt_ids": False},
    ),
    (
        "longcat-image", None, FLUX_CLASS,
        FLUX | {"vec_in_dim": None, "context_in_dim": 3584, "guidance_embed": False,
                "txt_ids_dims": [1, 2]},
    ),
    (
        "ovis-image", None, FLUX_CLASS,
        FLUX | {"vec_in_dim": None, "context_in_dim": 2048, "guidance_embed": False,
                "yak_mlp": True, "txt_norm": True, "txt_ids_dims": [1, 2]},
    ),
    (
        "hunyuan-image", None, (LDM + "hunyuan_video.model", "HunyuanVideo"),
        {"in_channels": 64, "out_channels": 64, "vec_in_dim": None, "context_in_dim": 3584,
         "hidden_size": 3584, "mlp_ratio": 4.0, "num_heads": 28, "depth": 2,
         "depth_single_blocks": 2, "axes_dim": [64, 64], "theta": 256, "patch_size": [1, 1],
         "qkv_bias": True, "guidance_embed": False, "byt5": True, "meanflow": False,
         "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False},
    ),
    (
        "qwen-image", None, (LDM + "qwen_image.model", "QwenImageTransformer2DModel"),
        {"num_layers": 2},
    ),
    (
        "hidream", None, (LDM + "hidream.model", "HiDreamImageTransformer2DModel"),
        {"patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1,
         "num_single_layers": 1, "attention_head_dim": 128, "num_attention_heads": 20,
         "caption_channels": [4096, 4096], "text_emb_dim": 2048, "num_routed_experts": 4,
         "num_activated_experts": 2, "axes_dims_rope": [64, 32, 32], "max_resolution": [128, 128],
         "llama_layers": [0, 1]},
    ),
    ("lumina2", None, LUMINA_CLASS, LUMINA),
    (
        "z-image", None, LUMINA_CLASS,
        LUMINA | {"dim": 3840, "cap_feat_dim": 2560, "n_heads": 30, "n_kv_heads": 30,
                  "axes_dims": [32, 48, 48], "z_image_modulation": True,
                  "pad_tokens_multiple": 32},
    ),
    (
        "z-image", "pixel", (LDM + "lumina.model", "NextDiTPixelSpace"),
        LUMINA | {"dim": 3840, "cap_feat_dim": 2560, "n_heads": 30, "n_kv_heads": 30,
                  "axes_dims": [32, 48, 48], "z_image_modulation": True,
                  "pad_tokens_multiple": 32, "in_channels": 3, "patch_size": 16,
                  "decoder_in_channels": 768},
    ),
    (
        "newbie", None, LUMINA_CLASS,
        LUMINA | {"cap_feat_dim": 2560, "clip_text_dim": 1024},
    ),
    (
        "auraflow", None, (LDM + "aura.mmdit", "MMDiT"),
        {"n_layers": 2, "n_double_layers": 1, "max_seq": 4096, "cond_seq_dim": 2048},
    ),
    (
        "pixart", None, (LDM + "pixart.pixartms", "PixArtMS"),
        {"depth": 2, "micro_condition": False, "model_max_length": 300, "input_size": 128,
         "pe_interpolation": 2},
    ),
    (
        "hunyuan-dit", None, (LDM + "hydit.models", "HunYuanDiT"),
        {"depth": 4, "hidden_size": 1408, "mlp_ratio": 4.3637, "size_cond": True,
         "use_style_cond": True},
    ),
    (
        "omnigen2", None, (LDM + "omnigen.omnigen2", "OmniGen2Transformer2DModel"),
        {"num_layers": 2, "num_refiner_layers": 1},
    ),
    (
        "cascade", None, (LDM + "cascade.stage_c", "StageC"),
        {"c_cond": 2048, "c_hidden": [2048, 2048], "nhead": [32, 32], "blocks": [[2, 2], [2, 2]]},
    ),
    ("cosmos-predict2", None, (LDM + "cosmos.predict2", "MiniTrainDIT"), COSMOS),
    ("anima", None, (LDM + "anima.model", "Anima"), COSMOS),
    (
        "kandinsky5", None, (LDM + "kandinsky5.model", "Kandinsky5"),
        {"model_dim": 2560, "ff_dim": 10240, "visual_embed_dim": 64, "axes_dims": [32, 48, 48],
         "num_text_blocks": 1, "num_visual_blocks": 2},
    ),
    ("hidream-o1", None, (LDM + "hidream_o1.model", "HiDreamO1Transformer"), {}),
    (
        "boogu", None, (LDM + "boogu.model", "BooguTransformer2DModel"),
        {"num_layers": 2, "num_double_stream_layers": 1, "num_refiner_layers": 1},
    ),
    (
        "ideogram4", None, (LDM + "ideogram4.model", "Ideogram4Transformer2DModel"),
        {"num_layers": 2},
    ),
    ("krea2", None, (LDM + "krea2.model", "SingleStreamDiT"), {"layers": 2}),
    ("lens", None, (LDM + "lens.model", "LensTransformer2DModel"), {"num_layers": 2}),
    ("ernie-image", None, (LDM + "ernie.model", "ErnieImageModel"), {"num_layers": 2}),
    ("pixeldit", None, (LDM + "pixeldit.model", "PixDiT_T2I"), {"patch_depth": 2}),
    (
        "qwen-image", "layered", (LDM + "qwen_image.model", "QwenImageTransformer2DModel"),
        {"num_layers": 2, "use_additional_t_cond": True},
    ),
    (
        "wan", None, (LDM + "wan.model", "WanModel"),
        {"model_type": "t2v", "dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 2},
    ),
]  # fmt: skip
"""Family, variant, ComfyUI's class and its facts, as in the real models but for how often their
blocks repeat."""

IN_FILES = {"pixeldit": "core."}
"""What a family's files have before the names that ComfyUI's class uses."""

LOADED_AS = {
    "sd35": "sd3",
    "flux2-klein": "flux2",
    "longcat-image": "flux",
    "ovis-image": "flux",
    "newbie": "lumina2",
}
"""The architecture that ComfyUI's class says, or an old one's, where it is not the family's own."""

SINCE_0_3_75 = {
    *(("ovis-image", None), ("newbie", None), ("z-image", "pixel"), ("anima", None)),
    *(("kandinsky5", None), ("hidream-o1", None), ("boogu", None), ("ideogram4", None)),
    *(("krea2", None), ("lens", None), ("ernie-image", None), ("pixeldit", None)),
    ("qwen-image", "layered"),
}
"""Families and variants that the oldest ComfyUI supported need not have."""

MAKE = """
import json, os, sys
from importlib import import_module
from pathlib import Path

launcher, comfyui = sys.argv[1:]
sys.path[0] = str(Path(launcher).parent)
sys.meta_path.insert(0, import_module(Path(launcher).stem).TorchvisionOperators())
sys.path[0] = comfyui
os.chdir(comfyui)
sys.argv = ["main.py", "--cpu"]
import_module("comfy.options").enable_args_parsing()
import torch
from comfy import model_detection, ops

def make(module, name, facts):
    module = import_module(module)
    # Flux and its kind refuse facts that this ComfyUI does not know, even those that are off.
    known = getattr(getattr(module, name + "Params", None), "__dataclass_fields__", facts)
    unknown = {key for key in facts if key not in known}
    if any(facts[key] for key in unknown - {"txt_ids_dims"}):
        raise AttributeError(f"{name} has no {unknown}")
    facts = {key: facts[key] for key in facts if key not in unknown}
    return getattr(module, name)(
        **facts, device="meta", dtype=torch.float16, operations=ops.disable_weight_init
    )

for inner, module, name, facts in json.load(sys.stdin):
    try:
        network = make(module, name, facts)
    except (AttributeError, ModuleNotFoundError, TypeError) as exc:
        print("found", json.dumps([None, repr(exc)]))
        continue
    prefix = "model.diffusion_model." + inner
    state = {prefix + key: value for key, value in network.state_dict().items()}
    found = model_detection.model_config_from_unet(state, "model.diffusion_model.")
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    print("found", json.dumps([type(found).__name__, shapes]))
"""


@pytest.mark.integration
def test_families_and_variants_of_comfyuis_own_networks() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", MAKE, str(Path(launch_comfyui.__file__)), str(find_comfyui())],
        input=json.dumps([[IN_FILES.get(id, ""), *made, facts] for id, _, made, facts in NETWORKS]),
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    lines = [line for line in answer.stdout.splitlines() if line.startswith("found ")]
    for (id, variant, _, _), line in zip(NETWORKS, lines, strict=True):
        comfy_class, shapes = json.loads(line.removeprefix("found "))
        if comfy_class is None:
            assert (id, variant) in SINCE_0_3_75, shapes
            continue
        for prefix in ("", "model.diffusion_model."):
            tensors = {
                prefix + name.removeprefix("model.diffusion_model."): TensorInfo(
                    "F16", tuple(shape), 0
                )
                for name, shape in shapes.items()
            }
            found = detect_checkpoint(SafetensorsHeader({}, tensors))
            assert (found.family, found.variant) == (id, variant)
        # ComfyUI tells no more than the architecture.
        theirs = family(family_of_comfy_class(comfy_class)).architecture
        assert theirs in (family(id).architecture, LOADED_AS.get(id)), (id, comfy_class)
