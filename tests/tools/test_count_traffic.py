"""What tools/count_traffic.py counts: kernels that draw a mask for each element use whole sectors at every width."""

from __future__ import annotations

import os
import shutil

import count_traffic
import pytest
from count_traffic import Count

if not shutil.which(os.environ.get("FRD_GXX", "g++")):
    pytest.skip("needs g++", allow_module_level=True)


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> list[Count]:
    return count_traffic.count(count_traffic.build(program=tmp_path_factory.mktemp("traffic") / "traffic"))


def test_every_byte_is_used_once(counts: list[Count]) -> None:
    """Of each case, all that is read and all that is written."""
    assert {one.way for one in counts if one.array == "source"} == {"load"}
    assert {one.way for one in counts if one.array == "target"} == {"store"}
    for one in counts:
        assert one.asked == one.used == one.all, one


@pytest.mark.parametrize("kernel", ["drop_rows", "masked_weight"])
def test_sectors_are_used_at_any_width(counts: list[Count], kernel: str) -> None:
    found = [one for one in counts if one.case.startswith(kernel)]
    assert len(found) > 40
    for one in found:
        assert 1 <= one.ratio <= 1.75, one


def test_sectors_are_used_whole_where_rows_are_aligned(counts: list[Count]) -> None:
    found = [one for one in counts if " 400 " in one.case]
    assert len(found) == 2 * 2 * 2 + 3 * 2
    assert all(one.ratio == 1 for one in found)


def test_a_weight_of_one_column(counts: list[Count]) -> None:
    """Each warp takes 32 of its rows: nothing but the last sector is asked for in part."""
    for one in counts:
        if one.case.startswith("masked_weight 130 x 1 "):
            assert one.requests == -(-130 // 32)
            assert one.sectors == -(-one.used // count_traffic.SECTOR)
