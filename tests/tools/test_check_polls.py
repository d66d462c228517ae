"""tools/check_polls.py sees in a listing of machine code which loads are polls, and what a compiler made of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import check_polls
import pytest

LISTING = """
	.section	.text._Z5probe,"ax",@progbits
.text._Z5probe:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.128.STRONG.GPU R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.128.STRONG.GPU R8, desc[UR4][R2.64+0x400] ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
        /*0040*/               @P1 BRA `(.L_x_2) ;
        /*0050*/                   STG.E.STRONG.GPU desc[UR4][R2.64], R4 ;
.L_x_2:
        /*0060*/                   EXIT ;
.L_x_3:
        /*0070*/                   BRA `(.L_x_3);
"""
DEPENDENCE = check_polls.FORMS["Ring<2, false>"]


def faults(listing: str, form: check_polls.Form = DEPENDENCE) -> list[str]:
    ((name, instructions),) = check_polls.kernels(listing)
    assert name == "_Z5probe"
    return check_polls.faults(instructions, form)


def test_polls_in_a_loop() -> None:
    ((_, instructions),) = check_polls.kernels(LISTING)
    assert [one.depth for one in instructions if one.opcode.startswith("LDG")] == [1, 1]
    assert [one.depth for one in instructions if one.opcode.startswith("STG")] == [0]
    assert faults(LISTING) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("@!P0 BRA `(.L_x_1)", "@!P0 BRA `(.L_x_2)", "0 strong loads of 128 bits in a loop, not 2"),
        ("LDG.E.128.STRONG.GPU R4", "LDG.E.128 R4", "1 strong loads of 128 bits in a loop, not 2; 1 weak loads"),
        ("LDG.E.128.STRONG.GPU R4", "LDG.E.STRONG.GPU R4", "1 strong loads of 128 bits in a loop, not 2"),
        ("LDG.E.128.STRONG.GPU", "LDG.E.128.STRONG.SYS", "a load of the whole system's scope"),
        ("LDC R1", "MEMBAR.ALL.GPU", "1 fences"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, said: str) -> None:
    assert old in LISTING
    assert said in "; ".join(faults(LISTING.replace(old, new)))


def test_a_form_without_what_it_waits_for() -> None:
    said = "; ".join(faults(LISTING, check_polls.FORMS["Flags"]))
    assert said.startswith("0 strong loads of 32 bits in a loop, not 1; 0 weak loads") and said.endswith("0 fences")


KERNEL = """
	.section	.text._Z6kernel,"ax",@progbits
.L_x_1:
.L_x_2:
        /*0010*/                   LDG.E.128.STRONG.GPU R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/                   HMMA.16816.F32.BF16 R12, R4, R8, R12 ;
.L_x_3:
        /*0040*/                   LD.E.STRONG.GPU R3, desc[UR4][R2.64] ;
        /*0050*/              @!P0 BRA `(.L_x_3) ;
        /*0060*/                   STG.E.STRONG.GPU desc[UR4][R2.64], R4 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/                   EXIT ;
"""


def test_polls_of_a_kernel_are_in_loops_of_their_own() -> None:
    ((_, instructions),) = check_polls.kernels(KERNEL)
    assert check_polls.kernel_faults(instructions) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("@!P0 BRA `(.L_x_2)", "@!P0 BRA `(.L_x_3)", "1 strong loads in no loop of their own"),
        ("@!P0 BRA `(.L_x_3)", "NOP", "1 strong loads in no loop of their own"),
        ("LDG.E.128.STRONG.GPU", "LDG.E.128", "no strong loads of 128 bits"),
        ("LDG.E.128.STRONG.GPU", "LDG.E.64.STRONG.GPU", "no strong loads of 128 bits"),
        ("STG.E.STRONG.GPU", "STG.E", "no strong stores in the loop over steps"),
        ("@P1 BRA `(.L_x_1)", "NOP", "no strong stores in the loop over steps"),
        ("HMMA.16816.F32.BF16", "FFMA", "no products on tensor cores"),
        ("/*0030*/", "/*0028*/                   STL [R1], R2 ;\n        /*0030*/", "local memory"),
    ],
)
def test_what_a_kernel_lacks_is_said(old: str, new: str, said: str) -> None:
    assert old in KERNEL
    ((_, instructions),) = check_polls.kernels(KERNEL.replace(old, new))
    assert said in "; ".join(check_polls.kernel_faults(instructions))


@pytest.mark.usefixtures("disassembling_nvcc")
def test_a_weak_poll_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same kernels with plain loads in the place of relaxed ones, as this compiler translates them."""
    shutil.copytree(check_polls.compile_cuda.ROOT / "csrc", tmp_path / "csrc")
    order = tmp_path / "csrc/cuda/order.h"
    order.write_text(order.read_text().replace("ld.relaxed.gpu.global", "ld.weak.global"))
    monkeypatch.setattr(check_polls.compile_cuda, "FLAGS", ("-O3", "-std=c++20", f"-I{tmp_path / 'csrc'}"))
    found = check_polls.check(check_polls.PROBE, 90, tmp_path)
    assert len(found) == 5 and all(found.values())
