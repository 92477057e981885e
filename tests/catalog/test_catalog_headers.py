from __future__ import annotations

import json
from pathlib import Path

import pytest
from intelligent_generation.core.catalog import TensorInfo, read_header
from intelligent_generation.core.errors import ModelFileError


def safetensors(table: object, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(begin: int, end: int, *, shape: list | None = None, dtype: object = "F16") -> dict:
    shape = [(end - begin) // 2] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as raised:
        read_header(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_reads_metadata_and_tensors(tmp_path, write_model):
    path = write_model(tmp_path / "a.safetensors", {"w": (4, 3), "scalar": ()}, {"ss_x": "1"})
    header = read_header(path)
    assert header.metadata == {"ss_x": "1"}
    assert header.tensors == {
        "w": TensorInfo("F16", (4, 3), 24),
        "scalar": TensorInfo("F16", (), 2),
    }


def test_agrees_with_the_safetensors_library(tmp_path):
    np = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    path = tmp_path / "a.safetensors"
    save_file(
        {"b": np.ones((2, 5), np.float32), "a": np.zeros((0, 3), np.int8), "c": np.ones((), "f2")},
        path,
        {"author": "a"},
    )
    header = read_header(path)
    assert header.metadata == {"author": "a"}
    assert dict(header.tensors) == {
        "a": TensorInfo("I8", (0, 3), 0),
        "b": TensorInfo("F32", (2, 5), 40),
        "c": TensorInfo("F16", (), 2),
    }


def test_header_longer_than_the_first_read(tmp_path, write_model):
    shapes = {f"a.rather.long.tensor.name.{i:05d}.weight": (1,) for i in range(2000)}
    path = write_model(tmp_path / "a.safetensors", shapes)
    assert len(read_header(path).tensors) == 2000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><head><title>Sign in</title>", "web page"),
        (b"\n\n  <html lang='en'>", "web page"),
        (b'{"error":"Unauthorized","message":"The creator requires"}', "JSON reply"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git-lfs"),
        (b"PK\x03\x04" + bytes(60), "pickle"),
        (b"\x80\x02}q\x00(X" + bytes(60), "pickle"),
        (b"GGUF" + bytes(60), "GGUF"),
        (b"\x01\x02\x03", "only 3 bytes"),
        (b"\xff" * 64, "announces a header of"),
        (b"\x10" + bytes(7) + b"not a header at all", "no header follows"),
    ],
)
def test_says_what_the_file_is_instead(tmp_path, data, reason):
    assert reason in refusal(tmp_path / "m.safetensors", data)


def test_header_whose_length_starts_like_a_web_page(tmp_path):
    text = json.dumps({"w": tensor(0, 2)}, separators=(",", ":")).encode().ljust(ord("<"))
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors(text, b"\0\0"))
    assert path.read_bytes()[:1] == b"<"
    assert list(read_header(path).tensors) == ["w"]


def test_truncated_data_tells_how_many_bytes_are_there(tmp_path):
    message = refusal(tmp_path / "m.safetensors", safetensors({"w": tensor(0, 2000)}, bytes(1500)))
    assert "truncated" in message
    assert "1,500 of 2,000 bytes" in message


def test_truncated_within_the_header(tmp_path):
    whole = safetensors({"w": tensor(0, 4)}, bytes(4))
    assert "truncated within its header" in refusal(tmp_path / "m.safetensors", whole[:30])


def test_more_data_than_described(tmp_path):
    data = safetensors({"w": tensor(0, 4)}, bytes(10))
    assert "6 bytes more" in refusal(tmp_path / "m.safetensors", data)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (b'{"w": {"dtype": "F16", ', "corrupt header"),
        (b"{" * 5000, "corrupt header"),
        ({"w": tensor(0, 4), "v": tensor(2, 6)}, "overlap"),
        ({"w": tensor(0, 4), "v": tensor(6, 8)}, "leave a gap"),
        ({"w": tensor(4, 0)}, "do not agree"),
        ({"w": tensor(-4, 0)}, "do not agree"),
        ({"w": tensor(0, 4, shape=[3])}, "do not agree"),
        ({"w": tensor(0, 4, shape=[-1, -2])}, "do not agree"),
        ({"w": tensor(0, 4, shape=[2.0])}, "do not agree"),
        ({"w": {"dtype": "F16", "shape": [2]}}, "do not agree"),
        ({"w": [1, 2]}, "do not agree"),
        ({"w": tensor(0, 4, shape=[0])}, "do not agree"),
        ({"v": tensor(0, 12), "w": tensor(12, 8, dtype="NEW")}, "do not agree"),
        ({"w": tensor(0, 4, dtype=16)}, "do not agree"),
        ({"w": {"dtype": "F16", "shape": [1], "data_offsets": [0, 1, 2]}}, "do not agree"),
        ({"__metadata__": {"a": 1}}, "__metadata__"),
        ({"__metadata__": "x"}, "__metadata__"),
    ],
)
def test_corrupt_header(tmp_path, table, reason):
    assert reason in refusal(tmp_path / "m.safetensors", safetensors(table, bytes(8)))


def test_header_that_is_too_long_is_not_read(tmp_path):
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little") + b"{")
        file.truncate(200_000_100)
    with pytest.raises(ModelFileError, match="200,000,000"):
        read_header(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ModelFileError, match=r"nowhere\.safetensors does not exist"):
        read_header(tmp_path / "nowhere.safetensors")
    with pytest.raises(ModelFileError):
        read_header(tmp_path)
