"""launch_comfyui.py: becoming another program, and ending with the one that started it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from intelligent_generation.scripts import launch_comfyui

HOST = """
import asyncio, sys
import neighbour
async def serve():
    print(__name__, sys.argv[1:], neighbour.VALUE, flush=True)
    await asyncio.Event().wait()
loop = asyncio.new_event_loop()
try:
    loop.run_until_complete(serve())
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def launch(folder: Path, main: str) -> subprocess.Popen[str]:
    (folder / "main.py").write_text(main)
    (folder / "neighbour.py").write_text("VALUE = 'found'\n")
    return subprocess.Popen(
        [sys.executable, launch_comfyui.__file__, str(folder / "main.py"), "--cpu", "a b"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_main_runs_as_if_started_directly_and_stops_with_standard_input(tmp_path: Path):
    with launch(tmp_path, HOST) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "__main__ ['--cpu', 'a b'] found\n"
        process.stdin.close()
        assert process.stdout.readline() == "stopped\n"
        assert process.wait(launch_comfyui.GRACE_SECONDS * 4) == 0


def test_main_that_does_not_stop_is_ended(tmp_path: Path):
    stubborn = HOST.replace('print("stopped", flush=True)', "loop.run_until_complete(serve())")
    with launch(tmp_path, stubborn) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(launch_comfyui.GRACE_SECONDS * 4) == 0


def test_main_that_fails_gives_its_exit_code(tmp_path: Path):
    with launch(tmp_path, "import sys\nsys.exit(7)\n") as process:
        assert process.wait(60) == 7


def test_torchvision_can_be_imported_behind_the_finder(tmp_path: Path):
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import launch_comfyui
sys.meta_path.insert(0, launch_comfyui.TorchvisionOperators())
assert "torch" not in sys.modules
from torchvision import transforms
print(transforms.ToTensor.__name__)
"""
    scripts = str(Path(launch_comfyui.__file__).parent)
    output = subprocess.run(
        [sys.executable, "-c", code, scripts], capture_output=True, text=True, check=True
    )
    assert output.stdout == "ToTensor\n"
