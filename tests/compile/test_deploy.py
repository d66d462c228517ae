"""Every block of ``docs/deploy.md``: what runs where the model was trained, and what runs in a serving process."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fused_rnn_dropout as frd
from fused_rnn_dropout import library

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "deploy.md"
SERVING = "# serving process"
pytestmark = pytest.mark.cpu_kernels


class Block(NamedTuple):
    """A fenced block, and the block of text after it: what it prints."""

    language: str
    code: str
    prints: str


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    for language, code in re.findall(r"^```(.*?)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        if language == "text":
            found[-1] = found[-1]._replace(prints=code)
        else:
            found.append(Block(language, code, ""))
    return found


SETUP, *_rest = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)
SECTIONS = {title: blocks(body) for title, body in (section.split("\n", 1) for section in _rest)}
ERRORS = dict(re.findall(r"^\| `(torch\..*?)` \| (.*) \|$", SETUP, flags=re.MULTILINE))
"""What the page says of each call where the import was forgotten."""
NEEDS = {"ONNX": ("onnxscript", "onnxruntime")}
SLOW = ("AOTInductor",)


def run(command: list[str], folder: Path, fails: bool = False) -> str:
    """Runs a command in ``folder`` and returns what it says."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    env["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500)
    said = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, said
    return said


def python(code: str, folder: Path, fails: bool = False) -> str:
    """Runs a block, and sees that it imports the package nowhere but where it says so."""
    if "import fused_rnn_dropout" not in code:
        code += "\nimport sys\nassert 'fused_rnn_dropout' not in sys.modules"
    (folder / "block.py").write_text(code, "utf-8")
    return run([sys.executable, "block.py"], folder, fails)


def serve(block: Block, folder: Path) -> str:
    """Runs a block as a serving process: first without the import, if it has one."""
    assert block.code.startswith(SERVING)
    without = re.sub(r"^import fused_rnn_dropout.*\n", "", block.code, flags=re.MULTILINE)
    if without != block.code:
        (call,) = [call for call in ERRORS if f"{call}(" in without]
        said = python(without, folder, fails=True)
        for sentence in re.findall(r"`(.*?)`", ERRORS[call]):
            assert sentence in said, said
    return python(block.code, folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the blocks run; ``python`` is this one there."""
    command = tmp_path / "python"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    command.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    "title",
    [pytest.param(t, marks=pytest.mark.slow if t in SLOW else ()) for t, found in SECTIONS.items() if found],
)
def test_a_section(title: str, folder: Path) -> None:
    """First all that runs where the model was trained, in one process, then the rest in its order."""
    if missing := [package for package in NEEDS.get(title, ()) if find_spec(package) is None]:
        pytest.skip(f"needs {' and '.join(missing)}")
    if title in SLOW and shutil.which("g++") is None:
        pytest.skip("needs g++")
    training = [block for block in SECTIONS[title] if block.language == "python" and SERVING not in block.code]
    code = "".join(block.code for block in [*blocks(SETUP), *training])
    said = python(code, folder)
    assert all(block.prints.strip() in said for block in training), said
    for block in SECTIONS[title]:
        if block in training:
            continue
        if block.language == "cpp":
            (folder / block.code.split("\n")[0].removeprefix("// ")).write_text(block.code, "utf-8")
            continue
        assert block.language in ("python", "sh")
        said = serve(block, folder) if block.language == "python" else run(["bash", "-euc", block.code], folder)
        assert block.prints.strip() in said, said


def test_every_section_is_found() -> None:
    assert len(blocks(SETUP)) == 1 and len(ERRORS) == 3
    assert {title for title, found in SECTIONS.items() if not found} == {"What the serving machine needs"}
    assert set(NEEDS) | set(SLOW) <= set(SECTIONS)
    assert sum(map(len, SECTIONS.values())) + 1 == len(blocks(PAGE.read_text("utf-8")))


class Sampler(nn.Module):
    """The pair is an input; or it is drawn, where none is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = frd.LSTM(4, 5, weight_dropout=0.5, zoneout_h=0.2)

    def forward(self, x: Tensor, rng: Tensor | None = None) -> Tensor:
        return self.rnn(x, rng=rng)[0]


LIBRARY_ALONE = f"""
import ctypes, os
import torch

for path in {list(map(str, frd.library_paths()))}:
    ctypes.CDLL(path, os.RTLD_LAZY)
assert hasattr(torch.ops.fused_rnn_dropout, "layer") and not hasattr(torch.ops.fused_rnn_dropout, "draw")
x, pair, y = torch.load("check.pt")
"""
"""What a C++ program has after ``dlopen``."""


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_the_library_alone_serves_traces(folder: Path) -> None:
    """With masks on as well: a trace draws by torch's own operator."""
    model, x, pair = Sampler(), torch.randn(3, 2, 4), frd.draw_rng("cpu")
    torch.save((x, pair, model(x, pair).detach()), folder / "check.pt")
    torch.jit.trace(model, (x, pair)).save(str(folder / "given.ts"))
    torch.jit.trace(model, (x,), check_trace=False).save(str(folder / "drawn.ts"))
    code = """
given, drawn = torch.jit.load("given.ts"), torch.jit.load("drawn.ts")
torch.testing.assert_close(given(x, pair), y)
assert not torch.equal(given(x, pair + 1), y)
assert not torch.equal(drawn(x), drawn(x))
"""
    python(LIBRARY_ALONE + code, folder)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_library_alone_serves_a_package_with_the_pair_as_an_input(folder: Path) -> None:
    model, x, pair = Sampler(), torch.randn(3, 2, 4), frd.draw_rng("cpu")
    torch.save((x, pair, model(x, pair).detach()), folder / "check.pt")
    program = torch.export.export(model, (x, pair))
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "sampler.pt2"))
    code = """
sampler = torch._inductor.aoti_load_package("sampler.pt2")
torch.testing.assert_close(sampler(x, pair), y)
assert not torch.equal(sampler(x, pair + 1), y)
"""
    python(LIBRARY_ALONE + code, folder)


def test_library_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = frd.library_paths()
    assert all(path.is_absolute() and path.is_file() for path in paths)
    assert paths[0].name.startswith("_C.") and all("_cuda" in path.name for path in paths[1:])
    (tmp_path / "_cuda99.py").touch()
    monkeypatch.setattr(library, "_loaded", library._loaded[:1])
    monkeypatch.setattr(torch.version, "cuda", "99.1")
    monkeypatch.setattr(frd, "__path__", [*frd.__path__, str(tmp_path)])
    monkeypatch.delattr(frd, "_cuda99", raising=False)
    try:
        assert library._load_cuda() is None
    finally:
        sys.modules.pop("fused_rnn_dropout._cuda99", None)
    assert frd.library_paths() == (paths[0], (tmp_path / "_cuda99.py").resolve())


def test_whole_modules_need_weights_only_false(tmp_path: Path) -> None:
    rnn = frd.GRU(4, 5, zoneout_h=0.1)
    torch.save(rnn.state_dict(), tmp_path / "weights.pt")
    frd.GRU(4, 5).load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    torch.save(rnn, tmp_path / "whole.pt")
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(tmp_path / "whole.pt", weights_only=True)
    assert torch.load(tmp_path / "whole.pt", weights_only=False).zoneout_h == 0.1
