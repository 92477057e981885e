"""What people paste."""

from __future__ import annotations

import pytest
from intelligent_generation.core.errors import SettingError
from intelligent_generation.core.hubs import (
    CivitaiReference,
    HashReference,
    HuggingFaceReference,
    Reference,
    parse_reference,
)

SHA = "3a" * 32

C, F, H = CivitaiReference, HuggingFaceReference, HashReference


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("https://civitai.com/models/123", C(123)),
        ("https://civitai.com/models/123/a-name", C(123)),
        ("https://civitai.com/models/123/a-name?modelVersionId=456", C(123, 456)),
        ("https://civitai.red/models/123?modelVersionId=456&x=1", C(123, 456)),
        ("  <https://www.civitai.com/models/123>  ", C(123)),
        ("civitai.com/models/123", C(123)),
        ("https://civitai.com/api/download/models/456", C(None, 456)),
        ("https://civitai.com/api/download/models/456?type=Model&fileId=9", C(None, 456, 9)),
        ("https://civitai.com/api/v1/models/123", C(123)),
        ("https://civitai.com/api/v1/model-versions/456", C(None, 456)),
        ("civitai:123", C(123)),
        ("civitai:123@456", C(123, 456)),
        ("civitai:@456", C(None, 456)),
        ("CivitAI:123@456+9", C(123, 456, 9)),
        ("urn:air:sdxl:lora:civitai:123@456", C(123, 456)),
        ("urn:air:sdxl:lora:civitai:123@456+9.safetensor", C(123, 456, 9)),
        ("air:sdxl:checkpoint:civitai:123@456", C(123, 456)),
        ("sdxl:checkpoint:civitai:123@456", C(123, 456)),
        ("urn:air:flux1:lora:civitai:123", C(123)),
        ("urn:air:model:huggingface:stabilityai/sdxl-vae", F("stabilityai/sdxl-vae")),
        ("https://huggingface.co/owner/name", F("owner/name")),
        ("https://hf.co/owner/name/", F("owner/name")),
        ("https://huggingface.co/owner/name/tree/v1.0", F("owner/name", "v1.0")),
        (
            "https://huggingface.co/owner/name/blob/main/sub/a%20b.safetensors",
            F("owner/name", "main", "sub/a b.safetensors"),
        ),
        (
            "https://huggingface.co/owner/name/resolve/refs%2Fpr%2F1/a.safetensors?download=true",
            F("owner/name", "refs/pr/1", "a.safetensors"),
        ),
        ("hf:owner/name", F("owner/name")),
        ("hf:owner/name/file.safetensors", F("owner/name", None, "file.safetensors")),
        ("hf:owner/name/sub/a b.safetensors", F("owner/name", None, "sub/a b.safetensors")),
        ("hf:owner/name@rev/file.safetensors", F("owner/name", "rev", "file.safetensors")),
        ("hf:owner/name@refs%2Fpr%2F1", F("owner/name", "refs/pr/1")),
        ("hf://owner/name@rev/a.gguf", F("owner/name", "rev", "a.gguf")),
        (SHA.upper(), H(SHA, "sha256")),
        ("sha256:" + SHA, H(SHA, "sha256")),
        ("A1B2C3D4E5", H("a1b2c3d4e5", "autov2")),
        ("A1B2C3D4E5F6", H("a1b2c3d4e5f6", "autov3")),
        ("hash:12345678", H("12345678", "autov1")),
    ],
)
def test_every_form(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert parse_reference(str(reference)) == reference


def test_an_address_of_a_mirror() -> None:
    mirrors = ("mirror.example",)
    assert parse_reference("https://mirror.example/models/1", mirrors=mirrors) == C(1)
    found = parse_reference("https://mirror.example/a/b/resolve/main/c.gguf", mirrors=mirrors)
    assert found == F("a/b", "main", "c.gguf")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "No model is named"),
        ("line\nbreak", "No model is named"),
        ("123456", "civitai:123456"),
        ("owner/name", "hf:owner/name"),
        ("my lora", "does not say which model"),
        ("https://example.com/a.safetensors", "neither on CivitAI nor on Hugging Face"),
        ("https://civitai.com.evil.example/models/1", "neither on CivitAI"),
        ("https://civitai.com/images/5", "no model's page"),
        ("https://civitai.com/models/1?modelVersionId=x", "is no number"),
        ("https://civitai.com/", "does not say which model"),
        ("https://huggingface.co/datasets/a/b", "datasets"),
        ("https://huggingface.co/a/b/tree/main/folder", "folder"),
        ("https://huggingface.co/a", "does not say which model"),
        ("https://[bad/", "does not say which model"),
        ("hf:a/b/../../etc/passwd", "Paths may not hold"),
        ("hf:a/b/c//d", "Paths may not hold"),
        ("hf:a/b@/c", "revision must follow"),
        ("hf:../b", "owner/name"),
        ("hf:a", "owner/name"),
        ("civitai:", "number"),
        ("civitai:abc", "number"),
        ("civitai:0", "start at 1"),
        ("civitai:٣", "number"),
        ("sha256:xyz", "hex digits"),
        ("abcdef", "does not say which model"),
    ],
)
def test_what_cannot_be_read_says_why_and_what_can(text: str, says: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_reference(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://civitai.com/api/download/models/1?token=canary-13",
        "https://me:canary-13@civitai.com/models/1",
    ],
)
def test_a_pasted_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(SettingError, match="holds a login or token") as caught:
        parse_reference(text)
    assert "canary" not in str(caught.value)
