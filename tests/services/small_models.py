"""ComfyUI nodes for tests: text encoders of SDXL, SD 3 and FLUX.1, and a FLUX.1 dev, made small,
seeded, in memory.

ComfyUI's own loaders take those of full size alone. A test puts this file into custom_nodes.
"""

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.text_encoders.flux
import comfy.text_encoders.sd3_clip
import torch
from comfy import sdxl_clip
from comfy.supported_models_base import ClipTarget

SMALL = {"num_hidden_layers": 3, "intermediate_size": 64}
SIZES = {
    "clip_l_model_config": SMALL,
    "clip_g_model_config": SMALL,
    "t5xxl_model_config": {"num_layers": 1, "d_ff": 64, "d_kv": 64, "num_heads": 2},
}
FLUX = {
    "image_model": "flux", "axes_dim": [16, 56, 56], "num_heads": 1, "mlp_ratio": 4.0,
    "theta": 10000, "out_channels": 16, "qkv_bias": True, "patch_size": 2, "in_channels": 16,
    "hidden_size": 128, "context_in_dim": 4096, "vec_in_dim": 768, "depth": 1,
    "depth_single_blocks": 1, "guidance_embed": True,
}  # fmt: skip
"""FLUX.1 dev's with one head and one block of each kind: 1.7 M parameters."""
KINDS = {
    "sdxl": lambda: ClipTarget(sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel),
    "sd3": lambda: ClipTarget(
        comfy.text_encoders.sd3_clip.SD3Tokenizer,
        comfy.text_encoders.sd3_clip.sd3_clip(
            clip_l=True, clip_g=True, t5=False, dtype_t5=torch.float32
        ),
    ),
    "flux": lambda: ClipTarget(
        comfy.text_encoders.flux.FluxTokenizer,
        comfy.text_encoders.flux.flux_clip(dtype_t5=torch.float32),
    ),
}


class SmallTextEncoders:
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 (ComfyUI's name)
        return {"required": {"kind": (list(KINDS),)}}

    def make(self, kind):
        clip = comfy.sd.CLIP(KINDS[kind](), model_options=SIZES)
        _fill(clip.cond_stage_model, spread=0.02)
        return (clip,)


class SmallFlux:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 (ComfyUI's name)
        return {"required": {}}

    def make(self):
        config = comfy.supported_models.Flux(FLUX)
        config.set_inference_dtype(torch.float32, None)
        device = comfy.model_management.get_torch_device()
        model = config.get_model({}, "", device)
        _fill(model.diffusion_model, spread=0.08)
        return (comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu")),)


def _fill(module, spread):
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "norm" in name and name.endswith(("weight", "scale")):
                weight.fill_(1.0)
            else:
                random = torch.randn(weight.shape, generator=source)
                weight.copy_(spread * random)


NODE_CLASS_MAPPINGS = {"SmallTextEncoders": SmallTextEncoders, "SmallFlux": SmallFlux}
