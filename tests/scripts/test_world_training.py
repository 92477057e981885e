"""The small world: its networks, its training loop and its stored weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from intelligent_generation.core.catalog import (
    detect_checkpoint,
    detect_lora,
    read_header,
    trained_size,
)
from intelligent_generation.scripts.world import autoencoder, files, loras, training
from intelligent_generation.scripts.world.__main__ import main
from intelligent_generation.scripts.world.network import CONTEXT, LATENT, Autoencoder, Denoiser
from intelligent_generation.scripts.world.scenes import Scene
from numpy.random import RandomState
from safetensors.numpy import load_file
from torch import nn

MEGABYTE = 1_000_000
SCRIPT = Path(files.__file__).parents[1] / "train_world.py"


@pytest.fixture
def denoiser() -> Denoiser:
    """One with random weights everywhere: a new one answers zero."""
    torch.manual_seed(1)
    network = Denoiser()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network


@pytest.fixture
def scenes_pixels() -> np.ndarray:
    return RandomState(2).randint(0, 256, size=(6, 32, 48, 3)).astype(np.uint8)


def test_the_encoder_network_computes_the_principal_components(scenes_pixels: np.ndarray):
    components = autoencoder.principal_components(scenes_pixels)
    network = Autoencoder()
    components.write(network.taesd_encoder)
    with torch.no_grad():
        by_network = network.encode(training.to_tensor(scenes_pixels)).numpy()
    expected = components.encode(scenes_pixels)
    assert expected.shape == (6, LATENT, 4, 6)
    np.testing.assert_allclose(by_network, expected, atol=1e-4)
    assert np.mean(expected**2) == pytest.approx(1, rel=0.05)


def test_cut_padding_gives_what_all_of_it_gives(denoiser: Denoiser):
    words, end = torch.randn(1, 5, CONTEXT), torch.randn(1, 1, CONTEXT)
    whole = torch.cat([words, end.expand(1, 72, CONTEXT)], dim=1)
    cut = torch.cat([words, end.expand(1, 3, CONTEXT)], dim=1)
    bias = torch.zeros(8)
    bias[-1] = np.log(70)
    x, time = torch.randn(1, LATENT, 16, 8), torch.tensor([700.0])
    with torch.no_grad():
        expected, answer = denoiser(x, time, whole), denoiser(x, time, cut, bias)
    assert expected.shape == x.shape
    torch.testing.assert_close(answer, expected, atol=1e-4, rtol=1e-4)


def test_a_lora_stored_is_what_was_trained(denoiser: Denoiser):
    adapter = loras.Adapter(denoiser, seed=3)
    for up in adapter.ups:
        nn.init.normal_(up, std=0.05)
    x, time, context = (
        torch.randn(1, LATENT, 8, 8),
        torch.tensor([300.0]),
        torch.randn(1, 4, CONTEXT),
    )
    with torch.no_grad():
        expected = denoiser(x, time, context)
        adapter.detach_from_network()
        plain = denoiser(x, time, context)
        tensors = adapter.tensors()
        for path, layer in denoiser.named_modules():
            name = "lora_unet_" + path.replace(".", "_")
            if f"{name}.alpha" in tensors:
                down, up = (
                    torch.from_numpy(tensors[f"{name}.lora_{part}.weight"]).float()
                    for part in ("down", "up")
                )
                layer.weight += float(tensors[f"{name}.alpha"]) / len(down) * (up @ down)
        merged = denoiser(x, time, context)
    assert (expected - plain).abs().max() > 0.01
    torch.testing.assert_close(merged, expected, atol=2e-3, rtol=2e-2)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IG_CACHE", str(tmp_path))
    return tmp_path / "world"


def _fit(steps: int, *, stop_at: int | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    layer = nn.Linear(4, 1)
    done = 0

    def loss_of(random: RandomState) -> torch.Tensor:
        nonlocal done
        if done == stop_at:
            raise KeyboardInterrupt
        done += 1
        x = torch.from_numpy(random.standard_normal((16, 4)).astype(np.float32))
        return (layer(x) - x.sum(dim=1, keepdim=True)).square().mean()

    training.train("line", list(layer.parameters()), loss_of, steps=steps, rate=0.05, decay=0.9)
    return layer.weight.detach().clone()


def test_a_stopped_training_goes_on_as_if_it_had_not(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    whole = _fit(200)
    torch.testing.assert_close(whole, torch.ones(1, 4), atol=0.1, rtol=0)
    (workspace / "line.state.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        _fit(200, stop_at=70)
    torch.testing.assert_close(_fit(200), whole)


def test_another_networks_state_is_refused(workspace: Path):
    _fit(3)
    with pytest.raises(ValueError, match=r"line\.state\.pt holds the training of another network"):
        training.train(
            "line", list(nn.Linear(5, 1).parameters()), lambda _: torch.zeros(()), steps=5, rate=1.0
        )


def test_a_loss_that_is_no_number_ends_the_training(workspace: Path):
    layer = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="the loss of step 0 is nan"):
        training.train(
            "broken",
            list(layer.parameters()),
            lambda _: layer.weight.sum() * float("nan"),
            steps=1,
            rate=0.1,
        )


def test_what_is_stored_is_small():
    stored = [path for path in files.WEIGHTS.rglob("*") if path.is_file()]
    sizes = {path.name: path.stat().st_size for path in stored}
    assert max(sizes.values()) <= 30 * MEGABYTE
    assert sum(sizes.values()) <= 48 * MEGABYTE


def test_every_recipe_has_its_lora_and_no_other_is_stored():
    assert [path.stem for path in files.loras()] == sorted(one.name for one in loras.recipes())


def test_the_checkpoint_is_known_for_what_it_is(workspace: Path):
    made = files.checkpoint()
    header = read_header(made)
    assert detect_checkpoint(header).family == "sd35"
    assert trained_size(header) == (128, 128)
    first = made.stat()
    again = files.checkpoint()
    assert (again, again.stat().st_mtime_ns) == (made, first.st_mtime_ns)


@pytest.mark.parametrize("path", files.loras(), ids=lambda path: path.stem)
def test_the_loras_fit_the_checkpoint(path: Path):
    header = read_header(path)
    assert detect_lora(header).family == "sd35"


# --------------------------------------------------------------------------- the whole way

TRIED = ("--share", "0.0005")
"""Two steps of nearly everything: seconds, where all of it takes hours."""


def _train(folder: Path, *, kill_at: str | None = None) -> int:
    """Run the one command, killed outright as soon as a file of that name is there."""
    command = [sys.executable, str(SCRIPT), "--into", str(folder), *TRIED]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        while kill_at is not None and process.poll() is None:
            if any(folder.rglob(kill_at)):
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.02)
        return process.wait()


def _weights(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    found = sorted(path for path in folder.rglob("*.safetensors"))
    return {str(path.relative_to(folder)): load_file(path) for path in found}


@pytest.mark.skipif(os.name == "nt", reason="only POSIX kills a process and its children at once")
def test_one_command_trains_all_from_nothing_and_goes_on_after_a_kill(tmp_path: Path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for name in ("denoiser-0.state.pt", "watercolor_wash.safetensors"):
        assert _train(killed, kill_at=name) == -signal.SIGKILL
    assert _train(killed) == 0
    assert _train(whole) == 0
    expected = _weights(whole)
    assert set(expected) == {
        str(path.relative_to(files.WEIGHTS)) for path in files.WEIGHTS.rglob("*.safetensors")
    }
    for name, tensors in _weights(killed).items():
        for key, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, expected[name][key], f"{name} {key}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--share", "0.5"), "add --into"),
        (("--share", "0", "--into", "x"), "--share is 0"),
        (("--share", "1.5", "--into", "x"), "--share is 1.5"),
        (("--share", "nan", "--into", "x"), "--share is nan"),
        (("paintings",), "there is no part 'paintings'"),
        (("loras", "--only", "oil"), "there is no LoRA 'oil'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main(arguments)
    assert says in capsys.readouterr().err


def test_data_of_another_share_is_refused(workspace: Path):
    training.save(training.workspace() / "few.npy", np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"few\.npy was made of 3 scenes, not 1; delete it"):
        training.pictures("few", [Scene("cat", "red")], 8)
