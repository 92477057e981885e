"""What the bootstrap decides, and its lock between processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from intelligent_generation.scripts import bootstrap
from intelligent_generation.scripts.bootstrap import (
    BootstrapError,
    Wanted,
    check_python,
    comfyui_requirements,
    exclusive,
    explain_failure,
    is_ready,
    python_in,
    torch_companions,
    wanted,
)
from intelligent_generation.scripts.test import PARALLEL, pytest_arguments

HOLD = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import bootstrap
with bootstrap.exclusive(Path(sys.argv[2])):
    print("holding", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "a repository"
    root.mkdir()
    (root / "requirements.txt").write_text("numpy>=1.25\n")
    (root / "pyproject.toml").write_text('[project]\nname = "pack"\n')
    return root


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    checkout = tmp_path / "ComfyUI"
    checkout.mkdir()
    (checkout / "main.py").write_text("")
    (checkout / "requirements.txt").write_text("torch\naiohttp>=3.11.8\n")
    return checkout


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 13)])
def test_supported_python_is_taken(version: tuple[int, int]):
    check_python(version)


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 14), (4, 0)])
def test_other_python_is_refused_with_a_way_out(version: tuple[int, int]):
    with pytest.raises(BootstrapError, match=rf"Python {version[0]}\.{version[1]};.*Install"):
        check_python(version)
    with pytest.raises(BootstrapError, match=r"with python3\.12\."):
        check_python(version, ["python3.12", "python3.10"])


def test_comfyui_requirements_leave_torch_out_and_nothing_else():
    text = (
        "comfyui-frontend-package==1.32.9\ntorch\ntorchsde\ntorchvision>=0.20\nTorchAudio \n"
        "\n#non essential dependencies:\nkornia>=0.7.1  # geometry\npydantic~=2.0\n"
    )
    assert comfyui_requirements(text) == [
        "comfyui-frontend-package==1.32.9",
        "torchsde",
        "kornia>=0.7.1",
        "pydantic~=2.0",
    ]


@pytest.mark.parametrize(
    ("torch", "vision", "audio"),
    [
        ("2.13.0+cpu", "0.28", "2.14"),
        ("2.9.1", "0.24", "2.10"),
        ("2.10.0+cu128", "0.25", "2.11"),
        ("2.0", "0.15", "2.1"),
    ],
)
def test_companions_go_with_torch(torch: str, vision: str, audio: str):
    assert torch_companions(torch) == (f"torchvision=={vision}.*", f"torchaudio<{audio}")


def test_unknown_torch_is_refused():
    with pytest.raises(BootstrapError, match="IG_TORCH"):
        torch_companions("3.0.0")


def test_default_environment(root: Path):
    want = wanted(root, None, {})
    assert want.environment == root / ".venv"
    assert want.torch == (bootstrap.TORCH,)
    assert not want.torch_forced


def test_torch_can_be_chosen_with_pip_options(root: Path):
    want = wanted(root, None, {"IG_TORCH": "torch==2.9.1 --index-url 'https://host/a b'"})
    assert want.torch == ("torch==2.9.1", "--index-url", "https://host/a b")
    assert want.torch_forced
    assert want.fingerprint != wanted(root, None, {}).fingerprint


def test_torch_can_be_a_windows_path(root: Path):
    want = wanted(root, None, {"IG_TORCH": r'"C:\my wheels\torch.whl" --no-index'})
    assert want.torch == (r"C:\my wheels\torch.whl", "--no-index")


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_changed_requirements_change_the_fingerprint(root: Path, name: str):
    before = wanted(root, None, {}).fingerprint
    assert wanted(root, None, {}).fingerprint == before
    with (root / name).open("a") as file:
        file.write("# more\n")
    assert wanted(root, None, {}).fingerprint != before


def test_own_checkout_gets_an_environment_of_its_own(root: Path, checkout: Path):
    first = wanted(root, checkout, {})
    assert first.environment.parent == root
    assert first.environment.name.startswith(".venv-")
    assert first.comfyui == checkout.resolve()
    # torch has a step of its own, so it does not matter here.
    (checkout / "requirements.txt").write_text("torch>=2.9\naiohttp>=3.11.8\n")
    assert wanted(root, checkout, {}) == first
    (checkout / "requirements.txt").write_text("aiohttp>=3.12\n")
    second = wanted(root, checkout, {})
    assert second.environment != first.environment
    assert second.fingerprint != first.fingerprint


def test_folder_that_is_no_checkout_is_refused(root: Path, tmp_path: Path):
    with pytest.raises(BootstrapError, match=r"not a ComfyUI checkout.*main\.py"):
        wanted(root, tmp_path / "absent", {})


def finish(want: Wanted, root: Path) -> None:
    python = python_in(want.environment)
    python.parent.mkdir(parents=True)
    python.write_text("")
    stamp = {"fingerprint": want.fingerprint, "root": str(root)}
    (want.environment / "bootstrap.json").write_text(json.dumps(stamp))


def test_finished_environment_is_ready(root: Path):
    want = wanted(root, None, {})
    assert not is_ready(want, root)
    finish(want, root)
    assert is_ready(want, root)


def test_environment_is_not_ready_when_something_changed(root: Path):
    want = wanted(root, None, {})
    finish(want, root)
    assert not is_ready(want, root / "moved")
    assert not is_ready(want._replace(fingerprint="other"), root)
    python_in(want.environment).unlink()
    assert not is_ready(want, root)


def test_damaged_stamp_means_not_ready(root: Path):
    want = wanted(root, None, {})
    finish(want, root)
    (want.environment / "bootstrap.json").write_text("{")
    assert not is_ready(want, root)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\n"
            "ERROR: No matching distribution found for torch==2.13.0",
            "index could not be reached",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement torch==2.13.0 "
            "(from versions: 2.9.0)\nERROR: No matching distribution found for torch==2.13.0",
            "has no torch==2.13.0 for this Python",
        ),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: [Errno 13] Permission denied: '/x'", "could not be written"),
        ("ERROR: something new", "last lines"),
    ],
)
def test_pip_failures_are_explained(output: str, reason: str):
    assert reason in explain_failure(output)


def hold(lock: Path) -> subprocess.Popen[str]:
    scripts = Path(bootstrap.__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(scripts), str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_second_process_waits_until_the_first_has_died(tmp_path: Path):
    lock = tmp_path / "made on demand" / "lock"
    with hold(lock) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "holding\n"
        with hold(lock) as second:
            assert second.stdout is not None
            assert "waiting for another setup" in second.stdout.readline()
            first.kill()  # no chance to clean up
            assert second.stdout.readline() == "holding\n"
            second.kill()


def test_lock_where_nothing_can_be_written_says_so(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BootstrapError, match="cannot be written"),
        exclusive(tmp_path / "file" / "lock"),
    ):
        pass


@pytest.mark.parametrize(
    "own", [["-n0"], ["-n", "4"], ["--dist=load"], ["-p", "no:xdist"], ["--pdb"]]
)
def test_own_schedule_is_kept(own: list[str]):
    assert pytest_arguments([*own, "tests/scripts"]) == [*own, "tests/scripts"]


@pytest.mark.parametrize("other", [[], ["tests/scripts", "-q"], ["-k", "name"], ["--pyargs"]])
def test_default_schedule_is_parallel(other: list[str]):
    assert pytest_arguments(other) == [*PARALLEL, *other]
