from __future__ import annotations

import io
import json
import zlib

import numpy as np
import pytest
from intelligent_generation.core.errors import PlanError
from intelligent_generation.core.generating.png import encode_png, read_png_text
from PIL import Image


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert int.from_bytes(data[at + 8 + length : at + 12 + length], "big") == zlib.crc32(
            kind + body
        )
        found.append((kind, body))
        at += 12 + length
    return found


def test_every_pixel_is_kept(pixels):
    with Image.open(io.BytesIO(encode_png(pixels, {"prompt": "{}"}))) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "plain",
        "tab\tline\nreturn\r",
        "crépuscule",
        "灯台 🗼 ünïcode",
        json.dumps({"a": "灯台"}),
        json.dumps({"a": "灯台"}, ensure_ascii=False),
        "x" * 2_000_000,
        "灯" * 1_500_000,
    ],
    ids=lambda value: value[:12],
)
def test_any_text_comes_back_as_it_went_in(pixels, value):
    assert read_png_text(encode_png(pixels, {"prompt": "p", "key": value})) == {
        "prompt": "p",
        "key": value,
    }


def test_the_hosts_text_is_in_the_chunks_that_save_image_writes(pixels):
    graph = json.dumps({"1": {"class_type": "KSampler", "inputs": {"text": "灯台"}}})
    data = encode_png(pixels, {"prompt": graph, "workflow": graph})
    assert [(kind, body) for kind, body in chunks(data) if kind.endswith(b"Xt")] == [
        (b"tEXt", b"prompt\0" + graph.encode("latin-1")),
        (b"tEXt", b"workflow\0" + graph.encode("latin-1")),
    ]


def test_a_png_without_text_has_none(pixels):
    data = encode_png(pixels, {})
    assert read_png_text(data) == {}
    assert {kind for kind, _ in chunks(data)} == {b"IHDR", b"IDAT", b"IEND"}


def other_format(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG\r\n\x1a\n", b"hello", b"\0" * 4000, other_format("JPEG"), other_format("GIF")],
    ids=["empty", "signature", "text", "zeros", "jpeg", "gif"],
)
def test_what_is_not_a_png_is_refused(data):
    with pytest.raises(PlanError, match="not a readable PNG"):
        read_png_text(data)


def test_a_png_cut_short_or_changed_is_refused_or_read_whole(pixels):
    data = encode_png(pixels, {"key": "value"})
    for end in range(0, len(data) - 12, 97):
        with pytest.raises(PlanError, match="not a readable PNG"):
            read_png_text(data[:end])
