"""What tools/count_philox.py counts: in lines of machine code and, with nvcc and nvdisasm, in kernels of Philox."""

from __future__ import annotations

import compile_cuda
import count_philox
import pytest

M0, M1 = "-0x2daee0ad", "0xcd9e8d57"
HALF = [f"IMAD.WIDE.U32 R2, R4, {M0}, RZ ;", f"IMAD.WIDE.U32 R6, R8, {M1}, RZ ;"] * 5
ROUNDS = ["{label}:", *HALF, "@P0 BRA `({label}) ;"]  # five rounds, twice
THIRD = ["{label}:", *HALF[:6], "@P0 BRA `({label}) ;"]  # three rounds, thrice
SHUFFLE = ["SHFL.IDX PT, R2, R4, R6, 0x1f ;"]


def rounds(label: str, form: list[str] = ROUNDS) -> list[str]:
    return [line.format(label=label) for line in form]


def loop(label: str, body: list[str]) -> list[str]:
    return [f"{label}:", *body, f"@!P1 BRA `({label}) ;"]


@pytest.mark.parametrize(
    ("lines", "row", "turn", "tie"),
    [
        ([], 0, 0, 0),
        (["IMAD.WIDE.U32 R2, R4, 0x8, R2 ;", "IMAD R2, R4, -0x2daee0ad, R2 ;"], 0, 0, 0),
        (HALF * 2, 20, 0, 0),
        (loop(".L_x_1", HALF * 8), 80, 0, 0),
        (loop(".L_x_1", rounds(".L_x_2")), 20, 0, 0),
        (loop(".L_x_1", loop(".L_x_2", HALF * 4)), 0, 20, 20),
        (loop(".L_x_1", loop(".L_x_2", rounds(".L_x_3") + rounds(".L_x_4"))), 0, 20, 20),
        ([*loop(".L_x_1", HALF[:1] + loop(".L_x_2", HALF * 2)), ".L_x_3:", "BRA `(.L_x_3) ;"], 1, 20, 0),
    ],
    ids=["none", "others", "straight", "four units", "turns", "sites", "sites and turns", "before the sites"],
)
def test_multiplications_are_counted_by_the_loops_around_them(lines, row, turn, tie):
    found = count_philox.count(lines)
    assert found == count_philox.Count(row, turn, tie, False)
    assert found.issued(3, 4) == row + 3 * turn


@pytest.mark.parametrize(
    ("units", "issued"),
    [(1, [(1, 19), (3, 19), (4, 19)]), (2, [(1, 19), (4, 19), (5, 37)]), (4, [(1, 19), (2, 19), (3, 37), (4, 37)])],
)
def test_lanes_that_exchange_take_sites_together(units, issued):
    drawn = rounds(".L_x_3", THIRD) + rounds(".L_x_4", THIRD)
    found = count_philox.count(loop(".L_x_1", HALF[:1] + loop(".L_x_2", drawn) + SHUFFLE))
    assert found == count_philox.Count(1, 18, 18, True)
    assert [(sites, found.issued(sites, units)) for sites, _ in issued] == issued
    assert count_philox.count(loop(".L_x_1", HALF[:1] + drawn + SHUFFLE)) == count_philox.Count(19, 0, 18, True)


def test_what_a_branch_may_leave_out_is_a_tie_s():
    second = ["@!P0 BRA `(.L_x_2) ;", *HALF, "@!P1 BRA `(.L_x_3) ;", *HALF, ".L_x_3:", ".L_x_2:"]
    assert count_philox.count_unrolled(HALF * 2 + second) == count_philox.Count(20, 0, 20, False)
    whole = ["@P2 BRA `(.L_x_9) ;", ".L_x_1:", *HALF * 2, *second, "@P3 BRA `(.L_x_1) ;", ".L_x_9:"]
    assert count_philox.count_unrolled(whole) == count_philox.Count(20, 0, 20, False)
    assert count_philox.count_unrolled([]) == count_philox.Count(0, 0, 0, False)


def test_kernels_of_a_listing_are_apart():
    listing = "\n".join([".section .text.a,x", *HALF, ".section .text.b,x", *HALF * 2])
    assert {name: count_philox.count(lines).row for name, lines in count_philox.kernels(listing).items()} == {
        "a": 10,
        "b": 20,
    }


@pytest.mark.parametrize(
    ("kernel", "units"), [("forward_step_kernel<Lstm, 4, true, half>", 4), ("backward_step_kernel<Gru, 1, float>", 1)]
)
def test_units_of_a_thread_are_in_a_kernel_s_name(kernel, units):
    assert count_philox.units_of(kernel) == units


TINY = """
#include "cuda/numbers.h"
#include "core/counters.h"
using namespace frd;
__global__ void one_call(uint32_t* to, Key key, int rows) {
  for (int b = threadIdx.x; b < rows; b += blockDim.x) to[b] = philox(b, 1, 2, 3, key).w[0];
}
__global__ void by_site(uint32_t* to, const Key* key, const uint64_t* thresholds, int rows, int sites) {
  for (int b = threadIdx.x; b < rows; b += blockDim.x) {
    uint32_t found = 0;
    FRD_ROLLED
    for (int s = 0; s < sites; ++s) found ^= dropped_of_call(b, 1, 2, s, *key, thresholds[s]) << s;
    to[b] = found;
  }
}
"""


def test_kernels_of_philox_alone(tmp_path, disassembling_nvcc):
    source, cubin = tmp_path / "tiny.cu", tmp_path / "tiny.cubin"
    source.write_text(TINY)
    nvcc = disassembling_nvcc
    compile_cuda.run(nvcc, *compile_cuda.FLAGS, "-arch=sm_80", "-cubin", source, "-o", cubin)
    listed = count_philox.kernels(compile_cuda.run(compile_cuda.find_nvdisasm(nvcc), "-c", cubin))
    names = compile_cuda.short_names(list(listed))
    found = {names[symbol]: count_philox.count(lines) for symbol, lines in listed.items()}
    assert found == {"one_call": count_philox.Count(20, 0, 0, False), "by_site": count_philox.Count(0, 20, 20, False)}
