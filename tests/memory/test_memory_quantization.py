"""Int8 weights: errors, edges, and which weights stay as they are."""

from __future__ import annotations

import pytest
import torch
from intelligent_generation.core.errors import ModelFileError
from intelligent_generation.core.memory.quantization import (
    int8_bytes,
    kept_because,
    quantize,
    quantize_rows,
)

UNET, TEXT = "diffusion_model", "text_encoder"


def values(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(300, 400), (320, 64, 3, 3), (7, 3_000_000)])
def test_no_weight_is_further_off_than_half_a_step_of_its_channel(
    shape: tuple[int, ...], dtype: torch.dtype
):
    weight = values(shape, dtype) * torch.linspace(1e-3, 1, shape[0], dtype=dtype).reshape(
        -1, *(1 for _ in shape[1:])
    )
    codes, scale = quantize_rows(weight)
    assert codes.dtype == torch.int8
    assert codes.shape == weight.shape
    assert scale.shape == (shape[0], *(1 for _ in shape[1:]))
    assert codes.abs().amax(dim=tuple(range(1, len(shape)))).eq(127).all()
    error = (codes.float() * scale - weight.float()).abs()
    assert (error <= 0.5001 * scale).all()


def test_rows_of_zeros_and_of_the_smallest_numbers_stay_finite():
    weight = torch.zeros(3, 10)
    weight[1] = 1e-40
    weight[2, 0] = 65504
    codes, scale = quantize_rows(weight)
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    assert torch.equal(codes[:2], torch.zeros(2, 10, dtype=torch.int8))
    assert codes[2, 0] == 127


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_damaged_weight_is_refused_by_name(bad: float):
    weight = values((300, 400))
    weight[299, 7] = bad
    with pytest.raises(ModelFileError, match=r"middle_block\.0\.weight holds NaN or infinity"):
        quantize(UNET, "middle_block.0.weight", weight)


@pytest.mark.parametrize(
    "name",
    [
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
        "input_blocks.1.1.proj_in.weight",
        "output_blocks.0.0.skip_connection.weight",
        "middle_block.1.proj_out.weight",
        "input_blocks.1.0.emb_layers.1.weight",
        "double_blocks.0.img_attn.proj.weight",
        "single_blocks.3.modulation.lin.weight",
        "joint_blocks.0.x_block.mlp.fc1.weight",
        "transformer_blocks.59.img_mod.1.weight",
        "blocks.3.self_attn.q.weight",
    ],
)
def test_the_weights_of_blocks_become_int8(name: str):
    assert kept_because(UNET, name, (1024, 1024)) is None
    assert quantize(UNET, name, values((1024, 64))) is not None


@pytest.mark.parametrize(
    "name",
    [
        "input_blocks.0.0.weight",
        "out.2.weight",
        "time_embed.0.weight",
        "time_embedding.2.weight",
        "label_emb.0.0.weight",
        "img_in.weight",
        "txt_in.weight",
        "vector_in.in_layer.weight",
        "guidance_in.out_layer.weight",
        "final_layer.linear.weight",
        "x_embedder.proj.weight",
        "context_embedder.weight",
        "t_embedder.mlp.0.weight",
        "time_text_embed.timestep_embedder.linear_1.weight",
        "proj_out.weight",
        "patch_embedding.weight",
        "head.head.weight",
    ],
)
def test_what_every_layer_depends_on_stays_as_it_is(name: str):
    assert kept_because(UNET, name, (1024, 1024))
    assert quantize(UNET, name, values((1024, 64))) is None


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.0.norm.weight", (4096,)),
        ("blocks.0.attn.bias", (1024, 1024)),
        ("blocks.0.conv3d.weight", (64, 64, 3, 3, 3)),
        ("blocks.0.small.weight", (255, 256)),
    ],
)
def test_other_shapes_and_small_weights_stay(name: str, shape: tuple[int, ...]):
    assert kept_because(UNET, name, shape)
    assert kept_because(TEXT, name, shape)


def test_text_encoders_keep_their_projection():
    assert kept_because(TEXT, "clip_g.transformer.text_projection.weight", (1280, 1280))
    name = "clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert kept_because(TEXT, name, (5120, 1280)) is None
    assert (
        kept_because(TEXT, "t5xxl.transformer.encoder.block.0.layer.1.wo.weight", (4096, 10240))
        is None
    )


def test_weights_in_8_bits_and_integers_are_left_alone():
    for dtype in (torch.float8_e4m3fn, torch.int8, torch.int64):
        assert quantize(UNET, "blocks.0.a.weight", torch.zeros(512, 512).to(dtype)) is None


def test_bytes_are_told_from_shapes_alone():
    tensors = [
        ("blocks.0.a.weight", (512, 512), 2 * 512 * 512),
        ("blocks.0.a.bias", (512,), 1024),
        ("final_layer.linear.weight", (512, 512), 2 * 512 * 512),
    ]
    assert int8_bytes(UNET, tensors) == 512 * 512 + 4 * 512 + 1024 + 2 * 512 * 512
    weight = values((512, 512), torch.float16)
    packed = quantize(UNET, "blocks.0.a.weight", weight)
    assert packed is not None
    assert packed.codes.nbytes + packed.scale.nbytes == 512 * 512 + 4 * 512
