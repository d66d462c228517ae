"""What is published: that each check refuses what it is there for, and that a release goes on where it stopped."""

from __future__ import annotations

import io
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from tools import release, wheel_checks
from tools.wheel_checks import Refused

ROOT = Path(__file__).resolve().parents[2]
KNOWN = (
    "PyModule_Create2", "_Py_Dealloc", "aoti_torch_get_dim", "torch_call_dispatcher", "memcpy@GLIBC_2.14",
    "_ZSt9terminatev@GLIBCXX_3.4", "__gmon_start__", "cudaLaunchKernel@libcudart.so.12",
    "__cudaRegisterFatBinary@libcudart.so.13", *wheel_checks.OF_TORCH,
)  # fmt: skip


@pytest.mark.parametrize("symbol", ["_ZN2at5emptyEv", "cudaMalloc", "torch", "memcpy", "GOMP_parallel", "x@CUDA_1.0",
                                    "cudaMalloc@libcudart.so.11", "cublasCreate@libcublas.so.12"])  # fmt: skip
def test_symbols_of_nobody_are_found(symbol: str) -> None:
    assert wheel_checks.strangers((*KNOWN, symbol)) == [symbol]
    assert not wheel_checks.strangers(KNOWN)


needs_binutils = pytest.mark.skipif(
    not all(map(shutil.which, ("objcopy", "readelf", "cc"))), reason="needs a compiler and binutils"
)


@needs_binutils
def test_symbols_of_a_library(tmp_path: Path) -> None:
    def library(name: str, text: str, *options: str) -> Path:
        path = tmp_path / f"{name}.so"
        source = path.with_suffix(".c")
        source.write_text(text)
        subprocess.run(["cc", "-shared", "-fPIC", "-nostdlib", source, "-o", path, *options], check=True)
        return path

    first = wheel_checks.OF_TORCH[0]
    uses = f"void {first}(void); void f(void) {{ {first}(); }}"
    library("libc10", f"void {first}(void){{}}")
    library("libtorch", "int nothing;")
    named = ("-Wl,--no-as-needed", f"-L{tmp_path}")
    wheel_checks.symbols(library("good", uses, *named, "-lc10"), tmp_path)
    with pytest.raises(Refused, match="bad.so leaves symbols undefined .*: cudaMalloc"):
        wheel_checks.symbols(library("bad", "void cudaMalloc(void); void f(void) { cudaMalloc(); }"), tmp_path)
    for options in (("-ltorch",), ()):  # there is one that has it, but this library does not ask for that one
        with pytest.raises(Refused, match=f"lacking.so needs {first} of the libraries in "):
            wheel_checks.symbols(library("lacking", uses, *named, *options), tmp_path)


def fatbin(*images: tuple[int, int]) -> bytes:
    """As fatbinary writes it: of each image its kind (2 is machine code, 1 PTX) and architecture."""
    parts = b"".join(
        struct.pack("<HHIQ", kind, 257, 64, 8) + bytes(12) + struct.pack("<I", sm) + bytes(32) + b"contents"
        for kind, sm in images
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(parts)) + parts


def gpu_library(folder: Path, name: str, data: bytes, *options: str) -> Path:
    """A library whose section of machine code holds these bytes."""
    own = Path(tempfile.mkdtemp(dir=folder))
    source = own / f"{name}.c"
    numbers = ",".join(map(str, data)) or "0"
    place = '__attribute__((section(".nv_fatbin"), used))' if data else ""
    source.write_text(f"{place} const unsigned char code[] = {{{numbers}}};")
    path = own / f"{name}.abi3.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-nostdlib", source, "-o", path, *options], check=True)
    return path


@needs_binutils
def test_machine_code_for_every_architecture(tmp_path: Path) -> None:
    every = [*((2, sm) for sm in wheel_checks.ARCHITECTURES), (1, wheel_checks.ARCHITECTURES[-1])]
    good = gpu_library(tmp_path, "_cuda12", fatbin(*every) + bytes(8) + fatbin(*every[::-1]))
    assert wheel_checks.fatbins(good)[0] == [*(("machine code", sm) for _, sm in every[:-1]), ("PTX", 120)]
    wheel_checks.architectures(good)
    for code, said in (
        (fatbin(*every) + fatbin(*every[1:]), "of each source, and has .* of one"),
        (fatbin(*every[:-1]), "of each source"),
        (fatbin(*every, (2, 121)), "of each source"),
        (b"", "holds nothing for a GPU"),
        (fatbin(*every)[:-4], "no fatbin at byte 0"),
        (fatbin(*every) + b"rest", "no fatbin at byte"),
    ):
        with pytest.raises(Refused, match=said):
            wheel_checks.architectures(gpu_library(tmp_path, "_cuda13", code))


@needs_binutils
def test_what_the_loader_is_asked_for(tmp_path: Path) -> None:
    def other(name: str) -> str:
        subprocess.run(["cc", "-shared", "-nostdlib", "-o", tmp_path / name, "-x", "c", "/dev/null"], check=True)
        return str(tmp_path / name)

    torch, runtime, strange = other("libtorch_cuda.so"), other("libcudart.so.12"), other("libstrange.so.1")
    named = ["-Wl,--no-as-needed", f"-L{tmp_path}"]

    def needing(name: str, *libraries: str) -> Path:
        return gpu_library(tmp_path, name, b"", *named, *(f"-l:{Path(path).name}" for path in libraries))

    wheel_checks.asked_of_the_loader(needing("_cuda12", torch, runtime))
    wheel_checks.asked_of_the_loader(needing("_C"))
    for library, said in (
        (needing("_cuda13", torch, runtime), "_cuda13.abi3.so does not need libcudart.so.13"),
        (needing("_C", torch), "_C.abi3.so needs libtorch_cuda.so"),
        (needing("_cuda12", runtime, strange), "needs libstrange.so.1, which not every system has"),
        (gpu_library(tmp_path, "_C", b"", "-Wl,-rpath,/opt/cuda"), "looks for libraries in /opt/cuda"),
    ):
        with pytest.raises(Refused, match=said):
            wheel_checks.asked_of_the_loader(library)


def sources(folder: Path) -> Path:
    package = folder / "fused_rnn_dropout"
    (package / "bench").mkdir(parents=True)
    for name in ("__init__.py", "py.typed", "_C.pyi", "bench/run.py", "_C.abi3.so", "left.o"):
        (package / name).write_text(name)
    return folder


def wheel(path: Path, *without: str, more: tuple[str, ...] = (), date: int = 2000) -> Path:
    names = [
        f"fused_rnn_dropout/{name}" for name in ("__init__.py", "py.typed", "_C.pyi", "bench/run.py", "_C.abi3.so")
    ]
    names += [
        f"f-1.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    ]
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*names, *more):
            if not name.endswith(without or ("nothing",)):
                archive.writestr(zipfile.ZipInfo(name, (date, 1, 1, 0, 0, 0)), name)
    return path


def test_contents_of_a_wheel(tmp_path: Path) -> None:
    source = sources(tmp_path / "source")
    wheel_checks.contents(wheel(tmp_path / "a.whl"), source, ["_C"])
    for broken, said in (
        (wheel(tmp_path / "b.whl", "run.py"), "lacks fused_rnn_dropout/bench/run.py"),
        (wheel(tmp_path / "c.whl", more=("tests/conftest.py",)), "besides tests/conftest.py"),
        (wheel(tmp_path / "d.whl", "LICENSE"), "no licenses/LICENSE"),
        (wheel(tmp_path / "e.whl", "_C.abi3.so"), "lacks fused_rnn_dropout/_C.abi3.so"),
    ):
        with pytest.raises(Refused, match=said):
            wheel_checks.contents(broken, source, ["_C"])


def test_a_library_that_names_a_folder_of_its_builder(tmp_path: Path) -> None:
    library = tmp_path / "_C.abi3.so"
    library.write_bytes(b"\0torch/include/ops.h\0/home/builder/.venv/ops.h\0")
    wheel_checks.names_no_folder(library, [Path("/home/other")])
    with pytest.raises(Refused, match="_C.abi3.so names /home/builder, which is a folder"):
        wheel_checks.names_no_folder(library, [Path("/home/other"), Path("/home/builder")])


def test_bytes_that_differ_are_named(tmp_path: Path) -> None:
    first = wheel(tmp_path / "a.whl")
    wheel_checks.same_bytes(first, wheel(tmp_path / "b.whl"))
    with pytest.raises(Refused, match="differs in f-1.dist-info/METADATA"):
        wheel_checks.same_bytes(first, wheel(tmp_path / "c.whl", date=2001))


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wheel_checks.MOST_BYTES, "wheel", 3)
    (tmp_path / "a.whl").write_bytes(b"1234")
    with pytest.raises(Refused, match="a.whl has 4 bytes, and a wheel may have 3"):
        wheel_checks.size(tmp_path / "a.whl", "wheel")


def test_an_sdist_without_dates_is_the_same_twice(tmp_path: Path) -> None:
    def packed(date: int, order: int) -> bytes:
        result = io.BytesIO()
        with tarfile.open(fileobj=result, mode="w:gz") as archive:
            for name in ("x/a.py", "x/run.sh")[::order]:
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.uname = 3, date, f"user{date}"
                member.mode = 0o775 if name.endswith("sh") else 0o664
                archive.addfile(member, io.BytesIO(name[-3:].encode()))
        return result.getvalue()

    assert packed(1, 1) != packed(2, -1)
    first = release.dateless(packed(1, 1), 9)
    assert first == release.dateless(packed(2, -1), 9) != release.dateless(packed(1, 1), 8)
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        assert [(m.name, m.mode, m.mtime) for m in archive] == [("x/a.py", 0o644, 9), ("x/run.sh", 0o755, 9)]
        content = archive.extractfile("x/run.sh")
        assert content is not None and content.read() == b".sh"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one file in the place of this one."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / ".gitignore").write_text("build/\ndist/\n")
    names = ("-c", "user.name=n", "-c", "user.email=e@x.org")
    for command in (("init", "-q"), ("add", "."), (*names, "commit", "-qm", "first")):
        subprocess.run(["git", *command], cwd=folder, check=True)
    monkeypatch.setattr(release, "ROOT", folder)
    return folder


def test_a_release_goes_on_where_it_stopped(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    fails = True

    def first() -> None:
        """One."""
        ran.append("first")

    def second() -> None:
        """Two."""
        ran.append("second")
        if fails:
            raise Refused("not good")

    def publish() -> None:
        """Three."""
        ran.append("publish")
        (clone / "dist").mkdir(exist_ok=True)

    monkeypatch.setattr(release.Release, "steps", lambda _: [first, second, publish])
    arguments = ["--dist", str(clone / "dist")]
    assert release.main(arguments) == 1
    assert capsys.readouterr().err == "error: not good\n" and ran == ["first", "second"]
    fails = False
    assert release.main(arguments) == 0
    assert ran == ["first", "second", "second", "publish"]
    assert "[1/3] first: done before" in capsys.readouterr().out
    assert release.main([*arguments, "--anew"]) == 0
    assert ran[4:] == ["first", "second", "publish"]


def test_a_tree_that_is_not_clean_is_refused(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clone / "more.py").write_text("")
    assert release.main([]) == 1
    assert "the working tree is not clean" in capsys.readouterr().err


def test_a_folder_with_other_files_is_not_written_over(clone: Path) -> None:
    made = release.Release("0" * 40, 9, clone / "dist")
    for name in ("sdist/f-1.tar.gz", "repaired/f-1.whl", "repaired-aarch64/f-1-a.whl", "built-macos/f-1-m.whl",
                 "../../../dist/f-0.whl"):  # fmt: skip
        (made.work / name).parent.mkdir(parents=True, exist_ok=True)
        (made.work / name).write_text(name)
    with pytest.raises(Refused, match="f-0.whl of something else"):
        made.publish()
    (clone / "dist" / "f-0.whl").unlink()
    made.publish()
    lines = (clone / "dist" / "SHA256SUMS").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["f-1.tar.gz", "f-1.whl", "f-1-a.whl", "f-1-m.whl"]
    made.publish()  # a second time is as good


def test_the_smaller_ten_lines_are_readmes() -> None:
    """But for sizes and comments, and what the release adds."""
    readme = (ROOT / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]

    def words(text: str) -> list[str]:
        code = re.sub(r"#.*", "", text)
        return re.findall(r"[a-z_]+", code.replace("out.sum().backward()", ""))

    assert words(readme) == words(release.TEN_LINES)


@pytest.mark.skipif(not (ROOT / ".github").exists(), reason="an sdist has no recipes")
def test_the_recipe_runs_what_the_page_says() -> None:
    page = (ROOT / "RELEASING.md").read_text("utf-8")
    recipe = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    commands = (
        "bash tools/release_environments.sh",
        ".venv/bin/python -m tools.release --under build/newest/bin/python",
    )
    for command in commands:
        assert f"\n    {command}\n" in page and f"run: {command}\n" in recipe
    (of_page,) = re.findall(r"^    apt-get install (.*)$", page, re.M)
    (of_recipe,) = re.findall(r"apt-get install -y --no-install-recommends (.*)$", recipe, re.M)
    assert set(of_page.split()) - {"git"} == set(of_recipe.split())
    assert (ROOT / "tools" / "release_environments.sh").exists()
