"""Building and installing: which torch, what stands in the way, what an sdist holds, what an import error says."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fused_rnn_dropout as frd
from fused_rnn_dropout import diagnosis

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(frd.__file__).parent


def load(name: str) -> ModuleType:
    """A module of ``_build``, which is no package."""
    sys.path.insert(0, str(ROOT / "_build"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "_build"))


checks, gpu_libraries, outside, readme = (
    load(name) if (ROOT / "_build").exists() else None for name in ("checks", "gpu_libraries", "outside", "readme")
)


def setup(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """``python setup.py --version``, which makes every check and builds nothing."""
    return subprocess.run(
        [sys.executable, "setup.py", *(arguments or ["--version"])],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# What stands in the way
# --------------------------------------------------------------------------------------------------------------------


def shadowing(folder: Path, **modules: str) -> str:
    """A PYTHONPATH with packages of these versions in it, which hide those that are installed."""
    for name, version in modules.items():
        metadata = folder / f"{name}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder)


def test_setup_says_what_it_builds_against():
    done = setup()
    assert done.returncode == 0, done.stderr
    assert f"built against torch {torch.__version__} in {Path(torch.__file__).parent}" in done.stderr
    assert "libraries: fused_rnn_dropout._C" in done.stderr
    cuda = re.search(r"the GPU's library is left out: (.*)|fused_rnn_dropout\._cuda\d+", done.stderr)
    assert cuda, done.stderr
    assert "left out: FRD_CUDA=0" in setup(FRD_CUDA="0").stderr


def test_a_version_says_what_was_left_out(tmp_path):
    """A build without the GPU's library has another name than one with it; what is published has no label."""
    public = frd.__version__
    assert setup(FRD_CUDA="0").stdout.strip() == f"{public}+cpu"
    assert setup(FRD_CUDA="0", FRD_RELEASE="1").stdout.strip() == public
    assert setup("-q", "egg_info", "-e", str(tmp_path)).returncode == 0
    (egg,) = tmp_path.glob("*.egg-info/PKG-INFO")
    assert f"\nVersion: {public}\n" in egg.read_text("utf-8"), "an sdist has no libraries"
    for label, environment in (("+cpu", {"FRD_CUDA": "0"}), ("", {"FRD_CUDA": "0", "FRD_RELEASE": "1"})):
        folder = tmp_path / f"metadata{label}"
        folder.mkdir()
        assert setup("-q", "dist_info", "-o", str(folder), **environment).returncode == 0
        assert [path.name for path in folder.iterdir()] == [f"fused_rnn_dropout-{public}{label}.dist-info"]


def nvcc(folder: Path, release: str) -> Path:
    """A toolkit with what looks like an nvcc of that version."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "nvcc").write_text(
        f'#!/bin/sh\ncase $1 in --version) echo "Cuda compilation tools, release {release}, V{release}.1" ;;\n'
        f'*) echo "#\\$ TOP={folder}" >&2 ;; esac\n'
    )
    (folder / "bin" / "nvcc").chmod(0o755)
    return folder


def test_which_toolkit_a_library_is_built_with(tmp_path, monkeypatch):
    """Of the right major version, wherever it is named."""
    from torch.utils import cpp_extension

    for name in ("CUDA_HOME", "CUDA12_HOME", "CUDA13_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    of_12, of_13 = nvcc(tmp_path / "12", "12.8"), nvcc(tmp_path / "13", "13.0")
    assert "no nvcc in CUDA12_HOME" in gpu_libraries.toolkit_for("12")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(of_13))
    assert gpu_libraries.toolkit_for("13") == of_13
    assert gpu_libraries.toolkit_for("12") == f"the nvcc in {of_13} is of CUDA 13.0, and CUDA 12 is wanted"
    monkeypatch.setenv("CUDA12_HOME", str(of_12))
    assert gpu_libraries.toolkit_for("12") == of_12 and gpu_libraries.toolkit_for("13") == of_13

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for wish, majors in (("", ["12"]), ("1", ["12"]), ("12,13", ["12", "13"]), ("13", ["13"])):
        monkeypatch.setenv("FRD_CUDA", wish)
        assert gpu_libraries.libraries() == ({major: tmp_path / major for major in majors}, None)
    monkeypatch.delenv("CUDA12_HOME")
    monkeypatch.setenv("FRD_CUDA", "13,12")
    with pytest.raises(SystemExit, match="FRD_CUDA=13,12, but the nvcc in .* is of CUDA 13.0, and CUDA 12 is wanted"):
        gpu_libraries.libraries()
    monkeypatch.setenv("FRD_CUDA", "")
    assert gpu_libraries.libraries()[0] == {}


def test_setup_ends_with_one_sentence(tmp_path):
    path = shadowing(tmp_path / "old", torch="2.9.1")
    for environment, words in (
        ({"CXX": "no-such-compiler"}, "C++20 compiler, and there is no no-such-compiler on the PATH"),
        ({"CXX": "false"}, "false is none (exit status 1)"),
        ({"PYTHONPATH": path}, "needs torch>=2.10, and .* has torch 2.9.1: pip install --upgrade torch"),
        ({"FRD_CUDA": "yes"}, "FRD_CUDA should be 0, 1 or of 12, 13 with commas between, got 'yes'"),
    ):
        done = setup(**environment)
        said = [line for line in done.stderr.splitlines() if not line.startswith("fused_rnn_dropout: ")]
        assert done.returncode == 1 and len(said) == 1, done.stderr
        assert re.search(re.escape(words) if ".*" not in words else words, said[0])


def test_an_sdist_needs_neither_torch_nor_compiler(tmp_path):
    path = shadowing(tmp_path / "old", torch="2.9.1")
    done = setup("-q", "dist_info", "-o", str(tmp_path), CXX="no-such-compiler", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    done = setup("-q", "sdist", "bdist_wheel", CXX="no-such-compiler")  # a wheel of no libraries would be no wheel
    assert done.returncode == 1 and "no-such-compiler" in done.stderr


def test_checks_say_what_to_do():
    assert checks.python((3, 10, 0)) is checks.python() is None
    assert "3.10 or later, and" in checks.python((3, 9, 18)) and checks.python((3, 9, 18)).endswith("is 3.9.18")
    assert checks.system("linux") is checks.system("darwin") is None and "WSL" in checks.system("win32")
    assert checks.untried("linux") is None
    assert "For macOS on arm64 it is cross-compiled and inspected, and was never executed" in checks.untried("macosx")
    assert "On freebsd it was never executed" in checks.untried("freebsd")
    assert checks.setuptools("77.0.1") is checks.setuptools("84.2.1.post1") is None
    assert "setuptools 77 or later" in checks.setuptools("65.5.0") and "65.5.0" in checks.setuptools("65.5.0")
    assert "no torch" in checks.torch(None) and "pip install torch" in checks.torch(None)
    assert "torch 2.9.1" in checks.torch("2.9.1+cu128")
    for good in ("2.10.0", "2.13.0+cpu", "2.14.0a0+git1234", "2.14.0.dev20261101", "3.0"):
        assert checks.torch(good) is None


def test_setup_looks_at_its_setuptools_first():
    source = "import setuptools, runpy, sys; setuptools.__version__ = '76.1'; sys.argv = ['setup.py', {!r}]; "
    for command in ("egg_info", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", source.format(command) + "runpy.run_path('setup.py')"],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "setuptools 77 or later" in done.stderr and "has 76.1" in done.stderr


def test_compiler_and_headers(tmp_path, monkeypatch):
    if shutil.which("c++") is None:
        pytest.skip("no compiler here")
    monkeypatch.delenv("CXX", raising=False)
    assert f"no Python.h in {tmp_path}" in checks.compiler(str(tmp_path))
    (tmp_path / "Python.h").touch()
    assert checks.compiler(str(tmp_path)) is None
    old = tmp_path / "old-c++"
    old.write_text("#!/bin/sh\necho \"old-c++: error: unrecognized option '-std=c++20'\" >&2\nexit 1\n")
    old.chmod(0o755)
    monkeypatch.setenv("CXX", f"{old} -pipe")
    assert "unrecognized option" in checks.compiler(str(tmp_path)) and f"{old} -pipe is none" in checks.compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no c++ on the PATH" in checks.compiler(str(tmp_path))


# --------------------------------------------------------------------------------------------------------------------
# Which torch
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def venvs(tmp_path: Path) -> dict[str, Path]:
    """Virtual environments by what torch they have; "build" has none, as those that build and uv make."""
    made = {}
    for name, version in (("good", "2.12.1+cpu"), ("old", "2.9.1"), ("none", None), ("build", None)):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / name], check=True)
        made[name] = tmp_path / name
        packages = tmp_path / name / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        if version:
            shadowing(packages, torch=version)
    return made


ASK = """
import sys
sys.path.insert(0, {folder!r})
from outside import started_from
found = started_from(throwaway={throwaway})
print(found and (found.torch, found.python))
"""


def asked(venvs: dict[str, Path], by: list[str], throwaway: bool = True, **environment: str) -> str:
    """What is found in the "build" environment where its interpreter is started by the command ``by``."""
    code = ASK.format(folder=str(ROOT / "_build"), throwaway=throwaway)
    python = str(venvs["build" if throwaway else "good"] / "bin" / "python")
    start = f"import subprocess; subprocess.run([{python!r}, '-c', {code!r}], check=True)"
    clean = {
        key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH")
    }
    done = subprocess.run(
        [*by, "-c", start], capture_output=True, text=True, env={**clean, **environment}, check=True,
        cwd=venvs["good"].parent,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc")
def test_the_torch_of_the_environment_that_starts_the_build(venvs):
    for name, version in (("good", "2.12.1+cpu"), ("old", "2.9.1"), ("none", None)):
        python = str(venvs[name] / "bin" / "python")
        assert asked(venvs, [python]) == str((version, python))
    assert "2.12.1+cpu" in asked(venvs, ["good/bin/python"])  # from the parent's folder
    on_path = f"{venvs['good'] / 'bin'}:{os.environ['PATH']}"
    assert "2.12.1+cpu" in asked(venvs, ["python"], PATH=on_path)
    # A tool in an environment of its own, as pipx makes them, while another one is active.
    assert "2.12.1+cpu" in asked(venvs, [str(venvs["none"] / "bin" / "python")], VIRTUAL_ENV=str(venvs["good"]))
    assert "2.12.1+cpu" in asked(venvs, [str(venvs["old"] / "bin" / "python")], CONDA_PREFIX=str(venvs["good"]))
    # What hides torch from the build's environment does not hide it here.
    hidden = shadowing(venvs["good"].parent / "hides", torch="2.9.1")
    assert "2.12.1+cpu" in asked(venvs, [str(venvs["good"] / "bin" / "python")], PYTHONPATH=hidden)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc")
def test_uv_and_what_it_takes_for_the_environment(venvs):
    uv = venvs["good"].parent / "uv"
    uv.symlink_to(os.path.realpath(sys.executable))  # a process of that name; it is no virtual environment's
    assert "2.12.1+cpu" in asked(venvs, [str(uv)], VIRTUAL_ENV=str(venvs["good"]))
    assert asked(venvs, [str(uv)]) == "None"
    (venvs["good"].parent / ".venv").symlink_to(venvs["good"])
    assert "2.12.1+cpu" in asked(venvs, [str(uv)])


def test_under_pip_the_interpreter_itself_knows(venvs):
    assert "2.12.1+cpu" in asked(venvs, [str(venvs["none"] / "bin" / "python")], throwaway=False)


def hooks(monkeypatch: pytest.MonkeyPatch, here: str | None, there: tuple[str, str | None] | None) -> ModuleType:
    """The backend where the build's own environment has one torch, or none, and that which started it another."""
    environment = None if there is None else outside.Environment(*there, path=["/its/packages"])
    monkeypatch.setattr(outside, "torch_in", lambda path: there[1] if there and "/its/packages" in path else here)
    monkeypatch.setattr(outside, "started_from", lambda throwaway: environment)
    monkeypatch.setitem(sys.modules, "outside", outside)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("backend", ROOT / "_build" / "backend.py")
    assert spec is not None and spec.loader is not None
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    return backend


def test_torch_is_fetched_only_where_there_is_none(monkeypatch, capsys):
    assert hooks(monkeypatch, "2.13.0", None).get_requires_for_build_wheel() == []
    assert hooks(monkeypatch, None, ("python", "2.13.0")).get_requires_for_build_editable() == []
    assert "/its/packages" in sys.path
    assert hooks(monkeypatch, None, None).get_requires_for_build_sdist() == []
    assert not capsys.readouterr().out
    assert hooks(monkeypatch, None, ("/a/python", None)).get_requires_for_build_wheel() == ["torch>=2.10"]
    assert "/a/python has no torch, so that the build fetches one" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="/a/python, which it is built for, has torch 2.9.1: upgrade"):
        hooks(monkeypatch, None, ("/a/python", "2.9.1")).get_requires_for_build_wheel()
    with pytest.raises(SystemExit, match="python -m build --no-isolation"):
        hooks(monkeypatch, None, None).get_requires_for_build_wheel()


# --------------------------------------------------------------------------------------------------------------------
# What is packed
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Message:
    folder = tmp_path_factory.mktemp("metadata")
    done = setup("-q", "dist_info", "-o", str(folder))
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.dist-info/METADATA")
    return Parser().parsestr(file.read_text("utf-8"))


def test_one_version_and_one_oldest_torch(metadata):
    assert metadata["Version"].removesuffix("+cpu") == frd.__version__
    assert not re.search(r'^version = "', (ROOT / "pyproject.toml").read_text(), re.M)
    assert outside.OLDEST_TORCH == diagnosis.OLDEST_TORCH == (2, 10)
    assert outside.REQUIREMENT in metadata.get_all("Requires-Dist")
    assert 'TORCH_TARGET = "0x020a' in (ROOT / "setup.py").read_text()


def test_classifiers_and_addresses(metadata):
    named = [f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)]
    assert set(named) < set(metadata.get_all("Classifier"))
    assert metadata["Requires-Python"] == ">=3.10"
    for field in ("Project-URL", "Home-page", "Author", "Author-email"):
        assert metadata[field] is None, "there is none yet"


LINK = re.compile(r"\[[^\]]*\]\((?!#|[a-z][a-z0-9+.-]*:)[^)]*\)|<img|<a ")


def test_the_description_has_no_link_that_only_a_checkout_can_follow(metadata):
    text = metadata.get_payload()
    assert LINK.search((ROOT / "README.md").read_text("utf-8")), "else this shows nothing"
    assert not LINK.search(text) and "![" not in text
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "docs/semantics.md" in text and "## Ten lines" in text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\n![alt](docs/a.png)\nb", "a\nb"),
        ("see ![alt](a.png) here", "see  here"),
        ('[text](docs/a.md "title") and [`b`](../b#c)', "text and `b`"),
        ("[x](#part) [y](https://y.org/z) ![z](https://y.org/z.png) [m](mailto:m@y.org)",) * 2,
        ("f(x)[0] (docs/a.md) [1]",) * 2,
    ],
)
def test_description(before, after):
    assert readme.description(before) == after


def named_in(page: Path) -> set[str]:
    """Files and folders of the checkout that a page names, by link, as code or in a command."""
    text = page.read_text("utf-8")
    words = set(re.findall(r"[\w.*-]+(?:/[\w.*-]+)*/?", text))
    found = {word.rstrip("/.") for word in words if not word.startswith((".venv/", "demo-output/"))}  # made here
    tracked = {"bench", "csrc", "docs", "examples", "fused_rnn_dropout", "scripts", "tests", "tools", "_build", ".ci"}
    return {
        word for word in found if (ROOT / word).exists() and (word.split("/")[0] in tracked or (ROOT / word).is_file())
    }


def test_the_readme_is_short_and_its_links_lead_somewhere():
    """As do those of the pages that it links to."""
    assert (ROOT / "README.md").read_text("utf-8").count("\n") <= 130
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")):
        prose = re.sub(r"```.*?```|`[^`\n]*`", "code", page.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\((?![a-z]+:)([^)#]+)[^)]*\)", prose):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that an sdist unpacks to, made from a copy: setuptools would write beside the sources."""
    folder = tmp_path_factory.mktemp("sdist")
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "demo-output"
    )
    shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "-d", folder],
        capture_output=True,
        text=True,
        cwd=folder / "checkout",
    )
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def test_an_sdist_holds_what_its_pages_name(sdist):
    pages = [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *(ROOT / "examples").rglob("*.md"),
    ]
    named = set().union(*map(named_in, pages))
    some = {"scripts/demo.sh", "scripts/test.sh", "scripts/gpu.sh", "docs/usage.md"}
    assert some | {"fused_rnn_dropout/bench/criteria.py"} <= named
    assert not [name for name in sorted(named) if not (sdist / name).exists()]


def test_an_sdist_holds_what_building_and_testing_read(sdist):
    for folder in ("_build", "bench", "csrc", "docs", "examples", "fused_rnn_dropout", "scripts", "tests", "tools"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix not in (".so", ".pyc", ".o"):
                assert (sdist / file.relative_to(ROOT)).exists(), file
    for name in ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "setup.py", ".clang-format"):
        assert (sdist / name).exists(), name
    assert not [file for file in sdist.rglob("*") if file.suffix in (".so", ".pyc", ".o")]
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], capture_output=True, text=True, cwd=sdist, check=True
    )
    assert done.stdout.strip().removesuffix("+cpu") == frd.__version__


@pytest.mark.slow
def test_the_tests_of_an_sdist_can_be_collected(sdist):
    """With the library of this checkout: that the wheel of an sdist builds and imports, CI sees."""
    for library in PACKAGE.glob("*.so"):
        shutil.copy(library, sdist / "fused_rnn_dropout")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"],
        capture_output=True, text=True, cwd=sdist,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "test_build.py::test_the_tests_of_an_sdist_can_be_collected" in done.stdout


# --------------------------------------------------------------------------------------------------------------------
# What an import error says
# --------------------------------------------------------------------------------------------------------------------


def imported(folder: Path, code: str = "import fused_rnn_dropout", *path: Path) -> str:
    """The last line on stderr of a process that imports the package from ``folder``."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
    )  # fmt: skip
    return (done.stderr.splitlines() or [""])[-1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Sources without a library."""
    made = tmp_path / "checkout"
    shutil.copytree(PACKAGE, made / "fused_rnn_dropout", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (made / "csrc").mkdir()
    (made / "setup.py").touch()
    return made


def library() -> Path:
    return next(PACKAGE.glob("_C.*so"))


def test_sources_without_a_library(checkout):
    """Also where an editable install of another checkout would lend its own."""
    said = imported(checkout)
    assert said.startswith(f"ImportError: the compiled library of fused_rnn_dropout is missing from {checkout}")
    assert said.endswith(f"pip install -e {checkout}") and "circular" not in said


def test_sources_that_hide_an_installed_package(checkout, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(checkout / "fused_rnn_dropout", site / "fused_rnn_dropout")
    shutil.copy(library(), site / "fused_rnn_dropout")
    assert not imported(tmp_path, "import fused_rnn_dropout", site)
    said = imported(checkout, "import fused_rnn_dropout", site)
    assert f"is installed in {site / 'fused_rnn_dropout'}, but Python imports the sources in {checkout}" in said
    assert "start Python in another folder" in said and said.endswith(f"pip install -e {checkout}")


def test_an_installation_without_its_library(checkout, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(checkout / "fused_rnn_dropout", site / "fused_rnn_dropout")
    assert "the installation is not whole: pip install --force-reinstall" in imported(
        tmp_path, "import fused_rnn_dropout", site
    )


def test_a_library_of_another_python(checkout):
    shutil.copy(library(), checkout / "fused_rnn_dropout" / "_C.cpython-39-x86_64-linux-gnu.so")
    said = imported(checkout)
    assert "_C.cpython-39-x86_64-linux-gnu.so" in said and "is of another Python or system" in said
    assert sys.executable in said and "free-threaded" in said


def test_a_library_that_does_not_load(checkout):
    (checkout / "fused_rnn_dropout" / "_C.abi3.so").write_text("no library")
    said = imported(checkout)
    assert f"does not load under torch {torch.__version__}" in said and "_C.abi3.so" in said
    error = ImportError("_C.abi3.so: undefined symbol: aoti_torch_something")
    assert "undefined symbol: aoti_torch_something" in diagnosis.why(error, checkout / "fused_rnn_dropout", "2.14.0")


def test_an_old_torch_or_python(checkout):
    shutil.copy(library(), checkout / "fused_rnn_dropout")
    code = "import torch; torch.__version__ = {!r}; import fused_rnn_dropout"
    said = imported(checkout, code.format("2.9.1+cu128"))
    assert "needs torch 2.10 or later" in said and "has torch 2.9.1+cu128: pip install --upgrade torch" in said
    assert not imported(checkout, code.format("2.10.0a0+git1"))
    said = imported(checkout, "import sys; sys.version_info = (3, 9, 18); import fused_rnn_dropout")
    assert said.startswith("ImportError: fused_rnn_dropout needs Python 3.10 or later")


# --------------------------------------------------------------------------------------------------------------------
# Names
# --------------------------------------------------------------------------------------------------------------------

TAKEN = {
    "macOS, math.h": "DOMAIN SING OVERFLOW UNDERFLOW PLOSS TLOSS HUGE MAXFLOAT X_TLOSS",
    "C, complex.h": "I complex imaginary",
    "glibc, sys/types.h and the compilers": "major minor makedev linux unix i386",
    "BSD, sys/param.h": "MIN MAX PAGE_SIZE NBPG BSD isset isclr howmany roundup powerof2",
    "Windows": "near far min max small hyper interface pascal cdecl IN OUT OPTIONAL ERROR NOTHING CONST VOID DELETE "
    "TRUE FALSE NO_ERROR IGNORE INFINITE STRICT TEXT CALLBACK FAR NEAR THIS ABSOLUTE RELATIVE TRANSPARENT OPAQUE",
}


def identifiers(text: str) -> set[str]:
    """Of C++, without comments, strings and what is another's: after std:: or ::."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\])*\"", " ", text, flags=re.DOTALL)
    return set(re.findall(r"\b[A-Za-z_]\w*\b", re.sub(r"^\s*#\s*include[^\n]*", "", text, flags=re.MULTILINE)))


@pytest.mark.parametrize("headers", TAKEN)
def test_no_name_is_a_macro_of_a_system(headers):
    taken = set(TAKEN[headers].split())
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu")]
    assert len(sources) > 50
    for path in sources:
        assert not identifiers(path.read_text("utf-8")) & taken, path
