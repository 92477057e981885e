"""Models of full size as ComfyUI builds them, without memory for their weights: names and shapes.

Needs ComfyUI's modules (`_memory_process.start`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[int, ...]]


def unet(name: str) -> Shapes:
    """The diffusion model of SD15 or SDXL."""
    import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
    import comfy.ops
    import torch

    levels: dict[str, Any] = {
        "SD15": {
            "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2], "context_dim": 768,
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "num_heads": 8,
        },
        "SDXL": {
            "channel_mult": [1, 2, 4], "num_res_blocks": [2, 2, 2], "context_dim": 2048,
            "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "num_head_channels": 64,
            "use_linear_in_transformer": True, "num_classes": "sequential",
            "adm_in_channels": 2816,
        },
    }  # fmt: skip
    module = openaimodel.UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        use_spatial_transformer=True,
        legacy=False,
        dtype=torch.float16,
        device="meta",
        operations=comfy.ops.disable_weight_init,
        **levels[name],
    )
    return _shapes(module)


def flux_dev() -> Shapes:
    import comfy.ldm.flux.model as flux

    return _shapes(
        flux.Flux(
            image_model="flux", in_channels=16, out_channels=16, vec_in_dim=768,
            context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0, num_heads=24, depth=19,
            depth_single_blocks=38, axes_dim=[16, 56, 56], theta=10_000, patch_size=2,
            qkv_bias=True, guidance_embed=True, **_transformer_options(),
        )
    )  # fmt: skip


def qwen_image() -> Shapes:
    import comfy.ldm.qwen_image.model as qwen

    return _shapes(qwen.QwenImageTransformer2DModel(**_transformer_options()))


def _transformer_options() -> dict[str, Any]:
    import comfy.ops
    import torch

    return {
        "dtype": torch.bfloat16,
        "device": "meta",
        "operations": comfy.ops.disable_weight_init,
    }


def text_encoder(name: str) -> Shapes:
    """clip_l, clip_g, t5xxl or qwen25_7b, named as in the files of its own."""
    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip
    import comfy.text_encoders.llama as llama
    import comfy.text_encoders.t5 as t5
    import torch

    folder = Path(comfy.sd1_clip.__file__).parent
    arguments = (torch.float16, "meta", comfy.ops.disable_weight_init)

    def config(name: str) -> dict[str, Any]:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    if name == "t5xxl":
        module = t5.T5(config("text_encoders/t5_config_xxl.json"), *arguments)
    elif name == "qwen25_7b":
        module = llama.Qwen25_7BVLI({}, *arguments)
    else:
        files = {"clip_l": "sd1_clip_config.json", "clip_g": "clip_config_bigg.json"}
        module = comfy.clip_model.CLIPTextModel(config(files[name]), *arguments)
    return _shapes(module)


def vae(latent_channels: int) -> Shapes:
    """The autoencoder of SD 1.5 and SDXL (4 latent channels) or of Flux (16), as in its file."""
    import torch
    from comfy.ldm.models import autoencoder

    config = {
        "double_z": True, "z_channels": latent_channels, "resolution": 256, "in_channels": 3,
        "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2,
        "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    with torch.device("meta"):
        module = autoencoder.AutoencoderKL(ddconfig=config, embed_dim=latent_channels)
    shapes = _shapes(module)
    if latent_channels == 16:  # Flux's file has no convolution between
        shapes = {name: shape for name, shape in shapes.items() if "quant_conv" not in name}
    return shapes


def qwen_image_vae() -> Shapes:
    import torch
    from comfy.ldm.wan.vae import WanVAE

    with torch.device("meta"):
        return _shapes(WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True]))


def sdxl_checkpoint() -> Shapes:
    """All of SDXL in one file, as ComfyUI names it when it saves a checkpoint."""
    import comfy.sdxl_clip
    import comfy.supported_models
    import torch

    sdxl = comfy.supported_models.SDXL({})
    text = comfy.sdxl_clip.SDXLClipModel(device="meta", dtype=torch.float16)

    def empty(shapes: Shapes) -> dict[str, Any]:
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    tensors = {
        **sdxl.process_unet_state_dict_for_saving(empty(unet("SDXL"))),
        **sdxl.process_clip_state_dict_for_saving(empty(_shapes(text))),
        **sdxl.process_vae_state_dict_for_saving(empty(vae(4))),
    }
    # Numbers from 0 to 76, which no model takes from its file.
    return {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not name.endswith("position_ids")
    }


def files(model: str) -> dict[str, tuple[str, str, Shapes]]:
    """The files of `sdxl` or `flux-dev`, as they are published: name -> ComfyUI's folder for it,
    data type as torch names it, shapes."""
    if model == "sdxl":
        return {"sdxl.safetensors": ("checkpoints", "float16", sdxl_checkpoint())}
    return {
        "flux1-dev.safetensors": ("diffusion_models", "bfloat16", flux_dev()),
        "t5xxl_fp16.safetensors": ("text_encoders", "float16", text_encoder("t5xxl")),
        "clip_l.safetensors": ("text_encoders", "float16", text_encoder("clip_l")),
        "ae.safetensors": ("vae", "float32", vae(16)),
    }


def _shapes(module: Any) -> Shapes:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}
