"""csrc/cuda/exchange.h on the host, where stores come into sight late and in any order: tests/cuda/exchange.cu.

The kernel is a recurrence of integers in which every word depends on all words of the step before. It is computed here
once more; a word read wrongly or written over too early changes all that follows. Each planted fault must be seen.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FORMS = [("strict4", "phased"), ("strict8", "phased"), ("strict4", "tagged"), ("dependence", "phased"),
         ("dependence", "tagged"), ("flags", "plain")]  # fmt: skip
MASK = {"phased": 0x40004000, "tagged": 0xFFFF << 48, "plain": 0}
BITS = {"phased": 32, "tagged": 64, "plain": 32}
FAULTS = {name: number for number, name in enumerate(
    ("none", "first valid", "passed over", "early", "group steps", "flag first", "two widths", "alone"))}  # fmt: skip


class Shape(NamedTuple):
    blocks: int
    threads: int
    steps: int
    rows: tuple[tuple[int, int], ...]
    """The first and the last step of each."""


SHAPES = {
    "one step": Shape(2, 32, 1, ((1, 1),)),
    "two steps": Shape(2, 32, 2, ((1, 2),)),
    "two blocks": Shape(2, 32, 40, ((1, 40),)),
    "six blocks of two warps": Shape(6, 64, 20, ((1, 20), (1, 20), (1, 20))),
    "rows that end": Shape(4, 32, 12, ((1, 12), (1, 9), (1, 9), (1, 2))),
    "rows that begin late": Shape(4, 32, 16, ((1, 16), (2, 16), (4, 16), (5, 16), (13, 16))),
}


def mix(a: int, b: int) -> int:
    x = ((a ^ (a >> 15)) * 0x2C1B3C6D + b * 0x9E3779B1) & 0xFFFFFFFF
    return ((x ^ (x >> 13)) * 0x297A2D39) & 0xFFFFFFFF


def expected(shape: Shape, word: str, alone: bool = False) -> np.ndarray:
    """The recurrence, step by step. ``alone``: the words of block 0 depend on the step and on nothing else."""
    vector = 128 // BITS[word]
    words = shape.blocks * vector
    out = np.zeros((shape.steps + 1, len(shape.rows), words), np.uint64)
    keep = (1 << BITS[word]) - 1 & ~MASK[word]
    for row, (first, last) in enumerate(shape.rows):
        before = [0] * words
        for step in range(1, shape.steps + 2):
            total = 0
            if first <= step - 1 <= last:
                for i, value in enumerate(before):
                    pair = i // vector // 2 * 2 * vector  # of producers, whose words drop out together
                    skip = mix(step, 77 + pair) % 4 == 0
                    total += mix(0 if skip else (value ^ value >> 32) & 0xFFFFFFFF, i)
            total &= 0xFFFFFFFF
            if step > shape.steps:
                out[shape.steps, row, vector if alone else 0 :] = total
            elif first <= step <= last:
                free = vector if alone else 0
                before = [value if i >= free and mix(step, 55 + i) % 4 == 0
                          else mix(total if i >= free else 0, step * 1000 + i) * 0x100000001 & keep
                          for i, value in enumerate(before)]  # fmt: skip
                out[step - 1, row] = before
    return out.ravel()


def build_program(target: Path, command: list[str | Path]) -> Path:
    sources = [ROOT / "tests/cuda/exchange.cu", ROOT / "tests/cuda/exchange_program.cu"]
    folders = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/cuda'}"]
    subprocess.run([*command, "-std=c++20", *folders, *sources, "-o", target], check=True)
    return target


@pytest.fixture(scope="module", params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/cuda/exchange_program.cu, for the host or for this machine's GPU."""
    target = tmp_path_factory.mktemp("exchange") / f"exchange_program_{request.param}"
    if request.param == "host":
        flags = ["-O1", "-Wno-unknown-pragmas", "-DFRD_CUDA_ON_HOST", "-x", "c++"]
        return build_program(target, [*shlex.split(os.environ.get("CXX", "c++")), *flags])
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    return build_program(target, [nvcc, "-O3", "-arch=native"])


def on_gpu(program: Path) -> bool:
    return program.name.endswith("gpu")


@pytest.mark.parametrize(("form", "word"), FORMS)
def test_a_program_alone(program: Path, form: str, word: str) -> None:
    """Where it runs on a GPU, it is the first thing of the exchange that does; who waits too long is ended."""
    for shape in SHAPES.values():
        steps = [str(step) for row in shape.rows for step in row]
        command = [program, form, word, *map(str, shape[:3]), *steps]
        for _ in range(3):
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
            np.testing.assert_array_equal(np.frombuffer(done.stdout, np.uint64), expected(shape, word))


def test_a_program_takes_the_time(program: Path) -> None:
    said = subprocess.run(
        [program, "time", "2000" if on_gpu(program) else "8"], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    assert len(re.findall(r"^\w+ \w+ \d+ blocks: -?\d+\.\d+ us a step$", said, re.M)) >= 20, said
    print(said)  # pytest -rP shows it


Run = Callable[..., np.ndarray]


@pytest.fixture
def run(cuda_host: ModuleType) -> Run:
    def call(form: str, word: str, shape: Shape, seed: int, fault: str = "none", steps_before: int = 0) -> np.ndarray:
        cuda_host.set_seed(seed)
        first, last = zip(*shape.rows, strict=True)
        return cuda_host.exchange(
            form, word, shape.blocks, shape.threads, shape.steps, first, last, FAULTS[fault], steps_before
        )

    return call


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("form", "word"), FORMS)
def test_every_word_is_of_its_step(run: Run, form: str, word: str, name: str) -> None:
    shape = SHAPES[name]
    want = expected(shape, word)
    for seed in range(math.ceil(40 / shape.steps)):
        np.testing.assert_array_equal(run(form, word, shape, seed), want, err_msg=f"seed {seed}")


def noticed(run: Run, form: str, word: str, shape: Shape, fault: str, steps_before: int = 0, seeds: int = 60) -> str:
    """How a fault shows itself under one of many seeds: a wrong word, or an error of the shim's."""
    want = expected(shape, word, fault == "alone")
    for seed in range(1, seeds):
        try:
            if not np.array_equal(run(form, word, shape, seed, fault, steps_before), want):
                return "wrong words"
        except RuntimeError as error:
            return str(error)
    return "nothing"


def seen(said: str) -> bool:
    return said == "wrong words" or "threads spin and nothing else happens" in said


LATE, EVEN = SHAPES["rows that begin late"], Shape(4, 32, 24, ((1, 24), (1, 24)))


@pytest.mark.parametrize(
    ("form", "word", "shape", "fault"),
    [
        ("strict4", "phased", EVEN, "first valid"),
        ("strict4", "tagged", EVEN, "first valid"),
        ("dependence", "phased", EVEN, "first valid"),
        ("dependence", "phased", EVEN, "passed over"),
        ("dependence", "phased", EVEN, "early"),
        ("dependence", "tagged", EVEN, "alone"),
        ("dependence", "phased", LATE, "group steps"),
        ("strict4", "phased", LATE, "group steps"),
        ("flags", "plain", EVEN, "flag first"),
    ],
)
def test_faults_are_seen(run: Run, form: str, word: str, shape: Shape, fault: str) -> None:
    assert seen(noticed(run, form, word, shape, fault))


@pytest.mark.parametrize("fault", ["passed over", "early", "alone"])
@pytest.mark.parametrize("form", ["strict4", "strict8"])
def test_a_strict_ring_rests_on_its_counters_alone(run: Run, form: str, fault: str) -> None:
    assert noticed(run, form, "phased", EVEN, fault) == noticed(run, form, "tagged", LATE, fault) == "nothing"


@pytest.mark.parametrize(("form", "word", "steps"), [("strict4", "phased", 4), ("dependence", "phased", 2),
                                                     ("dependence", "tagged", 2), ("flags", "plain", 24)])  # fmt: skip
def test_memory_that_was_not_zeroed_is_seen(run: Run, form: str, word: str, steps: int) -> None:
    assert seen(noticed(run, form, word, EVEN, "none", steps_before=steps))


def test_a_word_of_two_widths_is_told(run: Run) -> None:
    assert "a word that has been touched in another width" in noticed(run, "strict4", "phased", EVEN, "two widths")


def test_a_grid_too_large_is_refused(run: Run, cuda_host: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="too many blocks in cooperative launch"):
        run("strict4", "phased", Shape(18, 32, 3, ((1, 3),)), 1)


# ---- Values of phased words

ONE = {"bfloat16": 0x3F80, "float16": 0x3C00, "float32": 0x3F800000}


@pytest.mark.parametrize("kind", ONE)
def test_values_up_to_one_and_nan(cuda_host: ModuleType, kind: str) -> None:
    """All patterns of 16 bits, and those of float32 around the ends: up to 1 as they are, all else NaN."""
    if kind == "float32":
        near = [edge + i for edge in (0, ONE[kind], 0x3FFFFFFF, 0x40000000, 0x7F800000) for i in range(-40, 40)]
        some = np.random.default_rng(1).integers(0, 1 << 31, 10_000).tolist()
        patterns = np.array([i for i in near + some if 0 <= i < 1 << 31], np.uint32)
        patterns = np.concatenate([patterns, patterns | 0x80000000])
        highest, sign = 1 << 30, 0x80000000
    else:
        patterns = np.arange(1 << 16, dtype=np.uint32)
        highest, sign = 1 << 14, 0x8000
    sent, got = cuda_host.round_trip(kind, patterns).reshape(-1, 2).T
    magnitude, legal = patterns & (sign - 1), patterns & (sign - 1) <= ONE[kind]
    assert not (sent & highest).any(), "the phase's bit"
    np.testing.assert_array_equal(got[legal], patterns[legal])
    exponent = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}[kind]
    assert ((got[~legal] & (sign - 1)) > exponent).all() and legal.sum() > 1000 and (magnitude > exponent).any()
