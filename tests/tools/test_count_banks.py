"""What tools/count_banks.py counts: turns of shared memory, in a few lines of PTX and in a kernel of Triton's."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import count_banks
import ptx
import pytest
import sampling

LANES = range(32)
PTX = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0
)
.reqntid 64
{
	mov.u32 	%r1, %tid.x;
	and.b32 	%r2, %r1, 31;
	shl.b32 	%r3, %r2, SHIFT;
	mov.b32 	%r4, global_smem;
	add.s32 	%r5, %r4, %r3;
	mov.b32 	%r6, 0;
$L__BB0_1:
	ld.shared.v4.b32 	{%r10, %r11, %r12, %r13}, [%r5+64];
	add.s32 	%r6, %r6, 1;
	setp.lt.s32 	%p1, %r6, 9;
	@%p1 bra 	$L__BB0_1;
	st.shared.b32 	[%r7], %r10;
	ret;
}
"""


@pytest.mark.parametrize(
    ("addresses", "size", "taken", "needed"),
    [
        ([4 * i for i in LANES], 4, 1, 1),
        ([128 * i for i in LANES], 4, 32, 1),
        ([8 * i for i in LANES], 4, 2, 1),
        ([0 for _ in LANES], 4, 1, 1),
        ([16 * i for i in LANES], 16, 4, 4),
        ([8 * i for i in LANES], 8, 2, 2),
        ([80 * i for i in LANES], 16, 4, 4),
        ([64 * i for i in LANES], 16, 16, 4),
        ([2 * i for i in LANES], 2, 1, 1),
    ],
)
def test_turns_of_an_access(addresses: list[int], size: int, taken: int, needed: int) -> None:
    assert (count_banks.turns(addresses, size), count_banks.fewest(addresses, size)) == (taken, needed)


@pytest.mark.parametrize(("shift", "taken"), [(4, 4), (6, 16)])
def test_addresses_are_computed_for_each_thread(shift: int, taken: int) -> None:
    (kernel,) = ptx.kernels(PTX.replace("SHIFT", str(shift)))
    found = count_banks.look_at(kernel, depth=1)
    assert (found.taken, found.needed) == (2 * taken, 2 * 4)  # two warps


def test_an_address_of_something_else_is_refused() -> None:
    (kernel,) = ptx.kernels(PTX.replace("SHIFT", "%r9"))
    with pytest.raises(ValueError, match="%r9 is not computed from the thread's number"):
        count_banks.look_at(kernel, depth=1)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_u_is_read_with_few_conflicts() -> None:
    """In float32 without tensor cores a product reads U by units: 15 turns for one, where U lay by its columns."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = [sys.executable, "tools/count_banks.py", "-k", "lstm sequence forward ieee"]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, cwd=sampling.ROOT)
    assert done.returncode == 0, done.stderr
    row = re.search(r"lstm sequence forward ieee fp32 +(\d+) +(\d+) +([\d.]+) +16: \d+$", done.stdout, re.M)
    assert row and float(row[3]) <= 2, done.stdout
