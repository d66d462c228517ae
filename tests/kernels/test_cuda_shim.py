"""The shim that runs CUDA kernels on the host, tested with kernels whose answers are known: tests/cuda/selftest.cu.

Two things are checked of everything: that right kernels get right answers in any order of turns, and that wrong ones,
planted there, do not go unseen.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

ALL = 0xFFFFFFFF  # a full mask, and what memory that nobody wrote holds
SEEDS = range(9)  # 0: in order

Run = Callable[..., np.ndarray]
Size = int | tuple[int, int, int]


def size(n: Size) -> tuple[int, int, int]:
    return n if isinstance(n, tuple) else (n, 1, 1)


@pytest.fixture
def run(cuda_host: ModuleType) -> Run:
    """``run(name, grid, block, input, words)``: the words that a kernel writes."""

    def call(
        name: str,
        grid: Size = 1,
        block: Size = 32,
        input: object = (),
        words: int = 32,
        variant: int = 0,
        *,
        cooperative: bool = False,
        dynamic_shared: int = 0,
        seed: int = 0,
    ) -> np.ndarray:
        cuda_host.set_seed(seed)
        numbers = np.asarray(input)
        if numbers.dtype != np.uint32:
            numbers = numbers.astype(np.int64).astype(np.uint32)  # modulo 2^32
        return cuda_host.selftest(
            name, size(grid), size(block), numbers.ravel(), words, variant, cooperative, dynamic_shared
        )

    return call


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(1)


# ---- Indices, memory, numbers


@pytest.mark.parametrize("seed", [0, 3])
def test_indices(run: Run, seed: int) -> None:
    grid, block = (3, 2, 2), (5, 3, 2)
    rows = run("indices", grid, block, words=12 * 30 * 12, seed=seed).reshape(12, 30, 12)
    for b in range(12):
        for t in range(30):
            thread = [t % 5, t // 5 % 3, t // 15]
            index = [b % 3, b // 3 % 2, b // 6]
            assert rows[b, t].tolist() == [*thread, *index, *block, *grid]


def test_shared_memory_is_poisoned_for_every_block(run: Run) -> None:
    for seed in SEEDS:
        assert (run("uninitialised", 7, 1, words=14, dynamic_shared=64, seed=seed) == ALL).all()


def test_conversions_round_as_torch_does(run: Run, random: np.random.Generator) -> None:
    # Every value of each 16-bit format, what lies half-way to the next, its neighbours, and any floats.
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    exact = torch.cat([patterns.view(dtype).float() for dtype in (torch.float16, torch.bfloat16)])
    step = torch.cat([(patterns + 1).view(dtype).float() for dtype in (torch.float16, torch.bfloat16)])
    halfway = ((exact.double() + step.double()) / 2).float()
    either = [torch.nextafter(halfway, torch.tensor(sign * float("inf"))) for sign in (-1, 1)]
    any_bits = torch.from_numpy(random.integers(0, 2**32, 65536, dtype=np.uint32).view(np.float32))
    x = torch.cat([exact, halfway, *either, any_bits])
    got = run("convert", len(x) // 256, 256, x.numpy().view(np.uint32), 4 * len(x)).reshape(-1, 4)
    number = ~x.isnan()
    for column, dtype in enumerate((torch.bfloat16, torch.float16)):
        expected = x.to(dtype)
        bits = torch.from_numpy(got[:, column].astype(np.uint16).view(np.int16))
        assert torch.equal(bits[number], expected.view(torch.int16)[number])
        assert (bits[~number] == 0x7FFF).all()
        back = torch.from_numpy(got[:, column + 2].copy().view(np.float32))
        assert torch.equal(back[number], expected.float()[number])
        assert back[~number].isnan().all()


def test_tf32_rounds_half_away_from_zero(run: Run) -> None:
    ulp = 2.0**-10
    x = np.array(
        [1 + ulp / 2, -1 - ulp / 2, 1 + 0.49 * ulp, 1 + 1.5 * ulp, 2 - ulp / 2, np.inf, -np.inf, 0], np.float32
    )
    expected = np.array([1 + ulp, -1 - ulp, 1, 1 + 2 * ulp, 2, np.inf, -np.inf, 0], np.float32)
    assert run("tf32", 1, 8, x.view(np.uint32), 8).view(np.float32).tolist() == expected.tolist()
    assert np.isnan(run("tf32", 1, 1, np.array([np.nan], np.float32).view(np.uint32), 1).view(np.float32)[0])


def test_integer_functions(run: Run, random: np.random.Generator) -> None:
    pairs = random.integers(0, 2**32, (64, 2), dtype=np.uint32)
    pairs[0] = 0
    pairs[1] = ALL
    rows = run("integers", 1, 64, pairs, 64 * 7).reshape(64, 7).tolist()
    for (x, y), got in zip(pairs.tolist(), rows, strict=True):
        expected = [
            x * y >> 32,
            x.bit_count(),
            32 - x.bit_length(),
            (x & -x).bit_length(),
            int(f"{x:032b}"[::-1], 2),
            (y << 32 | x) << (y & 31) >> 32 & ALL,
            x ^ y,
        ]
        assert got == expected


# ---- Warps


def shuffled(kind: int, lane: int, operand: int, width: int) -> int:
    """The lane that ``lane`` reads, after the PTX manual's pseudo-code of shfl."""
    segment = lane & ~(width - 1)
    last = segment + width - 1
    operand &= 31
    if kind == 0:
        return segment | (operand & (width - 1))
    if kind == 1:
        return lane - operand if lane - operand >= segment else lane
    if kind == 2:
        return lane + operand if lane + operand <= last else lane
    return lane ^ operand if lane ^ operand <= last else lane


@pytest.mark.parametrize("variant", [0, 1], ids=["word", "double"])
@pytest.mark.parametrize("kind", range(4), ids=["idx", "up", "down", "xor"])
def test_shuffles(run: Run, random: np.random.Generator, kind: int, variant: int) -> None:
    values = random.integers(0, ALL, 32, dtype=np.uint32)
    for mask in (ALL, 0x0000FFFF, 0xF0F00F1F):
        for width in (1, 2, 4, 8, 16, 32):
            for operand in (0, 1, 2, 3, 7, 8, 15, 16, 21, 31, 33):
                out = run("shuffle", 1, 32, [kind, operand, width, mask, *values], 32, variant, seed=operand)
                for lane in range(32):
                    source = shuffled(kind, lane, operand, width)
                    there = mask >> lane & mask >> source & 1
                    assert out[lane] == (values[source] if there else ALL), (mask, width, operand, lane)


@pytest.mark.parametrize("mask", [ALL, 0x1, 0xFFFF0000, 0xA5A50F0F])
def test_votes(run: Run, random: np.random.Generator, mask: int) -> None:
    lanes = [lane for lane in range(32) if mask >> lane & 1]
    everybody = random.integers(0, 2**32, 32, dtype=np.uint32) | 1  # odd: every vote is yes
    for values in (everybody, everybody - 1, random.integers(0, 2**32, 32, dtype=np.uint32)):
        rows = run("vote", 1, 32, [mask, *values], 320, seed=mask).reshape(32, 10)
        own = values[lanes]
        for lane in range(32):
            if lane not in lanes:
                assert (rows[lane] == ALL).all()
                continue
            expected = [
                sum(1 << i for i in lanes if values[i] & 1),
                (own & 1).any(),
                (own & 1).all(),
                sum(1 << i for i in lanes if values[i] % 4 == values[lane] % 4),
                own.sum(dtype=np.uint32),
                own.min(),
                own.view(np.int32).max().view(np.uint32),
                np.bitwise_and.reduce(own),
                np.bitwise_or.reduce(own),
                np.bitwise_xor.reduce(own),
            ]
            assert rows[lane].tolist() == [int(value) for value in expected]


@pytest.mark.parametrize("block", [1, 7, 40])
def test_a_warp_that_is_not_full_votes_with_the_lanes_it_has(run: Run, block: int) -> None:
    rows = run("vote", 1, min(block, 32), [ALL, *[1] * 32], 320).reshape(32, 10)
    assert rows[0, 0] == 2 ** min(block, 32) - 1
    assert rows[0, 4] == min(block, 32)


def test_parts_of_a_warp_meet_apart(run: Run) -> None:
    for seed in SEEDS:
        assert run("halves_of_a_warp", seed=seed).tolist() == [120] * 16 + [376] * 16


# ---- Right in every order, and faults that are seen


def outcomes(run: Run, *args: object, expected: list[int], **kwargs: object) -> list[bool]:
    """For each seed, whether the answer is right."""
    return [run(*args, **kwargs, seed=seed).tolist() == expected for seed in SEEDS]


def test_syncwarp(run: Run) -> None:
    expected = [*range(1, 32), 0]
    assert all(outcomes(run, "through_shared_memory", expected=expected))
    assert not any(outcomes(run, "through_shared_memory", variant=1, expected=expected))


def block_sums(run: Run, variant: int) -> list[bool]:
    values = np.arange(3 * 256, dtype=np.uint32)
    return outcomes(run, "block_sum", 3, 256, values, 3, variant, expected=values.reshape(3, -1).sum(1).tolist())


def test_syncthreads(run: Run) -> None:
    assert all(block_sums(run, 0))


def test_a_syncthreads_left_out_is_seen(run: Run) -> None:
    # In order, thread 0 goes first and reads what nobody has written; at random it would have to come last.
    assert not any(block_sums(run, 1))


def test_a_wrong_lane_is_seen(run: Run) -> None:
    assert not any(block_sums(run, 2))


def test_named_barriers(run: Run) -> None:
    def hand_over(variant: int) -> list[bool]:
        expected = [1000 * r + 63 - i for r in range(abs(variant)) for i in range(64)]
        return outcomes(run, "hand_over", 1, 128, words=len(expected), variant=variant, expected=expected)

    assert all(hand_over(5))
    assert hand_over(-1) == [True] + [False] * (
        len(SEEDS) - 1
    )  # not waited at: not seen in order, where writers go first


@pytest.mark.parametrize("variant", [0, 1, 16, 17, 20, 31, 32])
def test_cp_async(run: Run, random: np.random.Generator, variant: int) -> None:
    data = random.integers(0, 2**32, 256, dtype=np.uint32)
    arrived = data.view(np.uint8).reshape(64, 16).copy()
    if variant >= 16:
        arrived[:, variant - 16 :] = 0
    expected = arrived.view(np.uint32).ravel()[np.arange(256) ^ 5]
    if variant == 1:
        expected[128:] = ALL  # not waited for, not read
    assert all(outcomes(run, "copy", 1, 32, data, 256, variant, expected=expected.tolist()))


def test_a_wait_left_out_is_seen(run: Run) -> None:
    data = np.arange(256)
    for seed in SEEDS:
        assert (run("copy", 1, 32, data, 256, variant=2, seed=seed) == ALL).all()
        late = run("copy", 1, 32, data, 256, variant=3, seed=seed)  # waits for the first group, reads both
        assert (late[:128] == data[:128] ^ 5).all()
        assert (late[128:] == ALL).all()


def test_a_barrier_left_out_around_a_copy_is_seen(run: Run) -> None:
    def right(variant: int) -> list[bool]:
        return outcomes(run, "copy", 1, 32, np.arange(256), 256, variant, expected=(np.arange(256) ^ 5).tolist())

    assert not any(right(4))  # between the wait and the reads of others
    assert sum(right(5)) <= 2  # between those and the next copy: not seen in order


def test_grid_barrier(run: Run) -> None:
    def pass_on(variant: int) -> list[bool]:
        expected = [(b + 5) % 8 for b in range(8)]
        results = [run("pass_on", 8, 64, [5], 16, variant, cooperative=True, seed=seed) for seed in SEEDS]
        return [out[8:].tolist() == expected for out in results]

    assert all(pass_on(0))
    assert sum(pass_on(1)) <= 2  # the grid's barrier left out: not seen in order, where all blocks go in step


def test_the_last_block(run: Run) -> None:
    values = np.arange(20) + 1
    for seed in SEEDS:
        assert run("last_block", 20, 64, values, 22, seed=seed)[0] == 210


def test_atomics(run: Run) -> None:
    threads = 8 * 96
    total = threads * (threads - 1) // 2
    for seed in SEEDS:
        out = run("atomics", 8, 96, words=18, cooperative=True, seed=seed)
        assert out[:10].view(np.int32).tolist() == [total, -total, threads - 1, 1 - threads, 0, -1, 0, 1, 1, total]
        assert out[10:12].view(np.float32).tolist() == [threads / 2, 0]
        assert out[12:16].view(np.uint64).tolist() == [threads << 32, (threads - 1) << 32]
        assert out[16:].view(np.float64)[0] == pytest.approx(1)


def test_waiting_for_another_block(run: Run) -> None:
    for seed in SEEDS:
        assert run("wait_for_flag", 3, 1, words=2, cooperative=True, seed=seed).tolist() == [1, 6]


# ---- Tensor cores


@pytest.mark.parametrize("variant", range(4), ids=["x4", "x2", "x4_trans", "x2_trans"])
def test_ldmatrix(run: Run, random: np.random.Generator, variant: int) -> None:
    tiles = random.integers(0, 65536, (4, 8, 8), dtype=np.uint16)
    got = run("load_matrix", 1, 32, tiles.view(np.uint32), 128, variant, seed=variant)
    got = got.reshape(32, 4)[:, : 2 if variant % 2 else 4]
    for lane in range(32):
        for tile in range(got.shape[1]):
            matrix = tiles[tile].T if variant > 1 else tiles[tile]
            low, high = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2].tolist()
            assert got[lane, tile] == low | high << 16


def fragments(A: np.ndarray, B: np.ndarray, D: np.ndarray) -> np.ndarray:
    """The 32 lanes' registers a, b, d of a product: ``A [16, K]``, ``B [K, 8]`` as bits, ``D [16, 8]`` floats."""
    words = np.zeros((32, 10), np.uint32)
    K = A.shape[1]
    for lane in range(32):
        g, q = divmod(lane, 4)
        for i in range(4):
            row, half = g + 8 * (i % 2), i // 2
            if K == 8:
                words[lane, i] = A[row, q + 4 * half]
            else:
                k = 2 * q + 8 * half
                words[lane, i] = int(A[row, k]) | int(A[row, k + 1]) << 16
        for i in range(2):
            k = q + 4 * i if K == 8 else 2 * q + 8 * i
            words[lane, 4 + i] = B[k, g] if K == 8 else int(B[k, g]) | int(B[k + 1, g]) << 16
        words[lane, 6:] = D[[g, g, g + 8, g + 8], [2 * q, 2 * q + 1] * 2].view(np.uint32)
    return words


def product(run: Run, A: torch.Tensor, B: torch.Tensor, D: torch.Tensor, seed: int = 0) -> np.ndarray:
    """``D + A @ B`` by the kernel. fp32 means tf32."""
    variant = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}[A.dtype]
    bits = [x.contiguous().view(torch.int32 if variant == 2 else torch.int16).numpy() for x in (A, B)]
    unsigned = [x.view(np.uint32 if variant == 2 else np.uint16) for x in bits]
    words = fragments(*unsigned, D.numpy())
    lanes = run("product", 1, 32, words, 128, variant, seed=seed).view(np.float32).reshape(32, 4)
    out = np.empty((16, 8), np.float32)
    for lane in range(32):
        g, q = divmod(lane, 4)
        out[[g, g, g + 8, g + 8], [2 * q, 2 * q + 1] * 2] = lanes[lane]
    return out


TENSOR_TYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", TENSOR_TYPES, ids=["bf16", "fp16", "tf32"])
def test_products_at_every_position_of_the_fragments(run: Run, dtype: torch.dtype) -> None:
    K = 8 if dtype == torch.float32 else 16
    for k in range(K):
        # One column of A, one row of B: each element of the result is a product that no other has.
        A, B = torch.zeros(16, K, dtype=dtype), torch.zeros(K, 8, dtype=dtype)
        A[:, k] = torch.arange(16) + 1
        B[k] = torch.arange(8) + 17
        D = torch.arange(128.0).reshape(16, 8) / 1024
        assert (product(run, A, B, D) == (D.double() + A.double() @ B.double()).float().numpy()).all()


@pytest.mark.parametrize("dtype", TENSOR_TYPES, ids=["bf16", "fp16", "tf32"])
def test_products_of_anything(run: Run, dtype: torch.dtype) -> None:
    K = 8 if dtype == torch.float32 else 16
    for seed in SEEDS:
        A, B, D = torch.randn(16, K), torch.randn(K, 8), torch.randn(16, 8)
        read = [x.to(dtype) for x in (A, B)]
        given = list(read)
        if dtype == torch.float32:  # the low 13 bits are not read
            read = [(x.view(torch.int32) & -(1 << 13)).view(torch.float32) for x in read]
        expected = (D.double() + read[0].double() @ read[1].double()).numpy()
        np.testing.assert_allclose(product(run, *given, D, seed=seed), expected, rtol=2**-24, atol=2**-40)


# ---- Streams


def test_an_event_orders_two_streams(cuda_host: ModuleType) -> None:
    def seen(with_event: bool) -> set[int]:
        results = set()
        for seed in range(1, 20):
            cuda_host.set_seed(seed)
            results.add(cuda_host.two_streams(with_event))
        return results

    assert seen(with_event=True) == {1}
    assert seen(with_event=False) == {0, 1}


# ---- What would hang, or is undefined


STUCK = {
    0: r"deadlock in kernel \w+: block \(0, 0, 0\): 31 threads from \(0, 0, 0\) wait at __syncthreads "
    r"\(selftest.cu:\d+\); 1 threads from \(5, 0, 0\) wait at barrier_sync \(selftest.cu:\d+\)\.",
    1: r"block \(0, 0, 0\), thread \(\d+, 0, 0\): threads of a block wait at different barriers: __syncthreads \(",
    2: r"deadlock .* 1 threads from \(3, 0, 0\) wait at __syncthreads .* 31 threads .* wait at __syncwarp",
    3: r"lanes of a warp meet in different calls: __\w+ \(selftest.cu:\d+\) and __\w+ \(selftest.cu:\d+\)",
    4: r"deadlock .* wait at grid_sync .* 2 of 3 blocks are at the grid's barrier\.",
    5: r"threads spin and nothing else happens, last at selftest.cu:\d+",
    6: r"thread \(\d+, 0, 0\): __shfl_sync \(selftest.cu:\d+\): lane \d+ is not in its own mask",
    7: r"mma by a warp that has not all its lanes",
    8: r"barrier_arrive \(selftest.cu:\d+\): barrier 1 expects \d+ threads, not \d+",
    9: r"__trap \(selftest.cu:\d+\)",
}


@pytest.mark.parametrize("variant", STUCK)
def test_what_would_hang_is_told(run: Run, cuda_host: ModuleType, variant: int) -> None:
    cooperative = variant in (4, 5)
    block = {5: 1, 8: 96}.get(variant, 32)
    for seed in (0, 1, 2) if variant == 5 else SEEDS:
        with pytest.raises(cuda_host.Fault, match=STUCK[variant]) as error:
            run("stuck", 3 if cooperative else 1, block, words=64, variant=variant, cooperative=cooperative, seed=seed)
        assert isinstance(error.value, RuntimeError)
        assert run("halves_of_a_warp", seed=seed)[0] == 120  # and what comes next is not disturbed


def test_a_grid_barrier_without_a_cooperative_launch(run: Run, cuda_host: ModuleType) -> None:
    with pytest.raises(cuda_host.Fault, match="grid_sync .*: the launch is not cooperative"):
        run("pass_on", 2, 32, [1], 4)


OUT_OF_BOUNDS = {
    0: "kernel kernel: written at 128 of 128 bytes of global memory",
    1: "kernel kernel: written at -4 of 128 bytes of global memory",
    2: "block .*: written 0 bytes past the end of shared tile",
    3: r"thread \(\d+, 0, 0\): cp_async16 \(selftest.cu:\d+\): 16 bytes at \d+ of 64",
    4: "16 bytes that are not within one shared array",
    5: "a shared address not a multiple of 16",
    6: r"ldmatrix_x4 \(selftest.cu:\d+\): 16 bytes that are not within one shared array",
}


@pytest.mark.parametrize("variant", OUT_OF_BOUNDS)
def test_out_of_bounds(run: Run, cuda_host: ModuleType, variant: int) -> None:
    for seed in (0, 1):
        with pytest.raises(cuda_host.Fault, match=OUT_OF_BOUNDS[variant]):
            run("out_of_bounds", 1, 32, [0] * 16, 32, variant, seed=seed)


def test_exceptions_come_out(run: Run) -> None:
    for seed in SEEDS:
        with pytest.raises(IndexError, match="thrown in a kernel"):  # std::out_of_range
            run("throws", 3, 64, seed=seed)


@pytest.mark.parametrize(
    ("grid", "block", "dynamic_shared", "cooperative", "message"),
    [
        (0, 32, 0, False, "invalid configuration"),
        (1, 0, 0, False, "invalid configuration"),
        (1, 1025, 0, False, "invalid configuration"),
        ((1, 65536, 1), 32, 0, False, "invalid configuration"),
        (1, 32, (48 << 10) + 1, False, "invalid argument"),
        (17, 32, 0, True, "too many blocks in cooperative launch"),
    ],
)
def test_launches_that_are_refused(
    run: Run, grid: Size, block: int, dynamic_shared: int, cooperative: bool, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        run("indices", grid, block, dynamic_shared=dynamic_shared, cooperative=cooperative)


def test_the_room_for_cooperative_launches_can_be_set(run: Run, cuda_host: ModuleType) -> None:
    try:
        cuda_host.set_multiprocessors(40)
        out = run("pass_on", 40, 32, [3], 80, cooperative=True, seed=1)
    finally:
        cuda_host.set_multiprocessors(16)
    assert out[40:].tolist() == [(b + 3) % 40 for b in range(40)]


# ---- Seeds, and what it costs


def test_a_seed_repeats_itself(run: Run) -> None:
    # Turns decide nothing in a right kernel: this one lacks the grid's barrier.
    def once(seed: int) -> list[int]:
        return run("pass_on", 8, 64, [5], 16, 1, cooperative=True, seed=seed).tolist()

    assert [once(seed) for seed in SEEDS] == [once(seed) for seed in SEEDS]
    assert len({tuple(once(seed)) for seed in SEEDS}) > 1


def test_launches_are_cheap(run: Run) -> None:
    # Stacks are kept from launch to launch; making them anew would take some milliseconds a block.
    run("indices", 4, 256, words=12 * 1024)
    begin = time.perf_counter()
    for _ in range(50):
        run("indices", 4, 256, words=12 * 1024)
    assert time.perf_counter() - begin < 2.5


# ---- Other builds of the shim


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", ["-O1 -DFRD_FIBERS_BY_UCONTEXT", "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"]
)
def test_other_builds(tmp_path: Path, flags: str) -> None:
    """Where there is no switch of stacks in assembler, and with the address sanitizer, right kernels run as well."""
    root = Path(__file__).parents[2]
    program = tmp_path / "program"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    command = [*compiler, "-x", "c++", "-std=c++20", "-DFRD_CUDA_ON_HOST", *flags.split(), "-Icsrc", "-Itests/cuda"]
    subprocess.run([*command, "tests/cuda/races_selftest.cu", "-o", str(program)], cwd=root, check=True)
    cases = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    right = [case.rsplit(" ", 1)[0] for case in cases if case.endswith(" right")]
    assert len(right) > 5
    for case in right:
        subprocess.run([program, case], check=True, timeout=100)
