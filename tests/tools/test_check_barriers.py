"""tools/check_barriers.py sees in a kernel's PTX whether a barrier stands between two steps, wherever it is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import barriers
import ptx
import pytest
import sampling

PTX = """
.visible .entry steps(
	.param .u64 .ptr .global .align 1 steps_param_0,
	.param .u64 .ptr .global .align 1 steps_param_1,
	.param .u64 steps_param_2
)
.reqntid 128
{
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd1, [steps_param_0]; // h
	ld.param.b64 	%rd2, [steps_param_1];
	cvta.to.global.u64 	%rd3, %rd1;
	mov.b64 	%rd5, 0;
$L__BB0_1:                              // a step
	ld.global.b64 	%rd7, [%rd2];
	mov.b32 	%r1, 0;
$L__BB0_2:                              // a block of units
	add.s64 	%rd4, %rd3, %rd7;
	// begin inline asm
	@%p1 ld.global.v2.b32 { %r2, %r3 }, [ %rd4 + 0 ];
	// end inline asm
	bar.sync 	0;
	st.global.v2.b32 [ %rd4 + 0 ], { %r2, %r3 };
	add.s32 	%r1, %r1, 1;
	setp.lt.s32 	%p2, %r1, 8;
	@%p2 bra 	$L__BB0_2;
	bar.sync 	0; // of a step
	add.s64 	%rd5, %rd5, 1;
	setp.ne.b64 	%p3, %rd5, 9;
	@%p3 bra 	$L__BB0_1;
	ret;
}
"""
BARRIER = "bar.sync \t0; // of a step"


def look_at(text: str):
    (kernel,) = ptx.kernels(text)
    return barriers.look_at(kernel)


def test_a_barrier_between_steps_is_found() -> None:
    found = look_at(PTX)
    assert found.carried == {"steps_param_0"} and found.wrong == []


@pytest.mark.parametrize(
    "other",
    ["barrier.sync 0;", "ld.shared.b32 %r8, [%r9];\n bar.sync 0;", "@%p4 bra $L__BB0_3;\n$L__BB0_3:\n bar.sync 0;"],
    ids=["another word", "not the first", "where two ways meet"],
)
def test_other_barriers_that_do(other: str) -> None:
    assert look_at(PTX.replace(BARRIER, other)).wrong == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (BARRIER, "", "no barrier from st.global.v2.b32 to ld.global.v2.b32 of the next step: steps_param_0"),
        (BARRIER, "", "no barrier from ld.global.v2.b32 to st.global.v2.b32 of the next step: steps_param_0"),
        (BARRIER, "@%p4 bar.sync 0;", "no barrier from st.global.v2.b32"),
        (BARRIER, "bar.warp.sync -1;", "no barrier from st.global.v2.b32"),
        (BARRIER, "bar.sync 0, 64;", "no barrier from st.global.v2.b32"),
        (BARRIER, "bar.arrive 0, 128;", "no barrier from st.global.v2.b32"),
        (BARRIER, "@%p4 bra $L__BB0_3;\n bar.sync 0;\n$L__BB0_3:", "no barrier from st.global.v2.b32"),
        (BARRIER, "bar.sync 0;\n st.global.b32 [%rd3], %r1;", "no barrier from st.global.b32 to ld.global.v2.b32"),
        ("ld.global.v2.b32", "ld.global.nc.v2.b32", "does not reach such a load"),
        (BARRIER, "cp.async.bulk.shared::cta.global [%r9], [%rd4], 16;\n bar.sync 0;", "an asynchronous copy"),
        ("ret;", "st.global.b32 [%rd3], %r1;\n ret;", "outside the loop over steps"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(old: str, new: str, said: str) -> None:
    assert old in PTX
    assert said in "; ".join(look_at(PTX.replace(old, new)).wrong)


def test_an_asynchronous_copy_is_a_load() -> None:
    """As Triton fetches what the next block of a product reads."""
    load = "@%p1 ld.global.v2.b32 { %r2, %r3 }, [ %rd4 + 0 ];"
    assert load in PTX
    copied = PTX.replace(load, "cp.async.ca.shared.global [ %r9 + 0 ], [ %rd4 + 0 ], 0x8, %r8;")
    assert look_at(copied).wrong == []
    said = "; ".join(look_at(copied.replace(BARRIER, "")).wrong)
    assert "no barrier from st.global.v2.b32 to cp.async.ca.shared.global of the next step: steps_param_0" in said


def test_two_steps_in_one_turn_of_the_loop() -> None:
    """A barrier after the second alone."""
    begin, end = PTX.index("$L__BB0_2:"), PTX.index(BARRIER)
    again = PTX[begin:end].replace("$L__BB0_2", "$L__BB0_3")
    assert "no barrier from st.global.v2.b32 to ld.global.v2.b32" in "; ".join(
        look_at(PTX.replace(BARRIER, again + BARRIER)).wrong
    )
    assert look_at(PTX.replace(BARRIER, BARRIER + "\n" + again + BARRIER)).wrong == []


def test_a_block_of_one_warp() -> None:
    alone = PTX.replace(".reqntid 128", ".reqntid 32")
    assert look_at(alone.replace(BARRIER, "bar.warp.sync \t-1;")).wrong == []
    assert look_at(alone.replace(BARRIER, "bar.warp.sync \t65535;")).wrong != []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("st.global.v2.b32 [ %rd4 + 0 ], { %r2, %r3 };", "", "0 loops read and write the same memory"),
        ("add.s64 \t%rd4, %rd3, %rd7;", "mov.b64 \t%rd4, 16;", "nobody knows whose memory"),
        (BARRIER, "call.uni other, ();", "leads to what is not followed"),
    ],
)
def test_what_cannot_be_judged_is_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        look_at(PTX.replace(old, new))


# --------------------------------------------------------------------------------------------------------------------
# Triton's kernels: all of them are looked at by the tool itself
# --------------------------------------------------------------------------------------------------------------------


def run(folder: Path, kernel: str) -> subprocess.CompletedProcess:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(folder)
    some = ["-k", kernel, "--target", "cuda:90", "--warps", "4", "--units", "200"]
    script = [sys.executable, "tools/check_barriers.py", *some]
    return subprocess.run(script, capture_output=True, text=True, env=environment, cwd=folder)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_steps_of_a_cell(cell: str, way: str) -> None:
    done = run(sampling.ROOT, f"{cell} sequence {way} bf16")
    assert done.returncode == 0, done.stdout + done.stderr
    operand = {"forward": "read", "backward": "dgates"}[way]
    assert operand in done.stdout and done.stdout.endswith("a barrier on every way into the next step\n")


def test_a_kernel_without_its_barrier(tmp_path: Path) -> None:
    for name in ("fused_rnn_dropout", "tools"):
        shutil.copytree(sampling.ROOT / name, tmp_path / name)
    (tmp_path / "tests/budgets").mkdir(parents=True)
    kernel = tmp_path / "fused_rnn_dropout/triton/rnn_sequence.py"
    text = kernel.read_text()
    assert text.count("        tl.debug_barrier()\n") == 2
    kernel.write_text(text.replace("        tl.debug_barrier()\n", ""))
    done = run(tmp_path, "rnn sequence forward bf16")
    assert done.returncode == 1, done.stderr
    assert "of the next step: read" in done.stdout and done.stdout.endswith("WRONG in 1\n")
