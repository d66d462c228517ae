"""The rule of masks: Philox's known answers, golden vectors of every kind, and the C++ copy of the tables."""

from __future__ import annotations

import itertools
import random
import re
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fused_rnn_dropout  # noqa: F401  registers the operators
from fused_rnn_dropout import masks, sites
from fused_rnn_dropout.sites import DOMAIN, GROUPS, KIND, KINDS, SEQ, SITE, SITE_NAMES

ROOT = Path(__file__).parents[2]
CORE = ROOT / "csrc" / "core"
LOW = 0xFFFFFFFF
PI = ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))
ONES = ((LOW,) * 4, (LOW,) * 2)
ZEROS = ((0,) * 4, (0,) * 2)


def tensor(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def philox_of_integers(counter: tuple[int, ...], key: tuple[int, ...], rounds: int = 10) -> list[int]:
    """Philox4x32 once more, in Python's integers and straight from the paper's description."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [right >> 32 ^ c[1] ^ k[0], right & LOW, left >> 32 ^ c[3] ^ k[1], left & LOW]
        k = [k[0] + 0x9E3779B9 & LOW, k[1] + 0xBB67AE85 & LOW]
    return c


# --------------------------------------------------------------------------------------------------------------------
# The generator
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "given", "expected"),
    [
        (7, ZEROS, "5f6fb709 0d893f64 4f121f81 4f730a48"),
        (7, ONES, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (7, PI, "4dfccaba 190a87f0 c47362ba b6b5242a"),
        (10, ZEROS, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (10, ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (10, PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers_of_random123(rounds, given, expected):
    counter, key = given
    result = masks.philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)), rounds)
    assert " ".join(f"{int(word):08x}" for word in result) == expected


def test_philox_equals_integer_arithmetic_for_any_counter():
    draw = random.Random(1)
    # The extremes of every word are where a product could overflow a signed 64-bit integer.
    values = [0, 1, 2**31 - 1, 2**31, LOW - 1, LOW]
    counters = [
        tuple(draw.choice(values) if draw.random() < 0.5 else draw.getrandbits(32) for _ in range(6))
        for _ in range(500)
    ]
    columns = [torch.tensor(column) for column in zip(*counters, strict=True)]
    result = torch.stack(masks.philox(tuple(columns[:4]), tuple(columns[4:])), dim=-1)
    assert result.tolist() == [philox_of_integers(given[:4], given[4:]) for given in counters]


@pytest.mark.slow
def test_words_are_the_same_in_generated_code():
    """Also where the counters are an arange inside the graph, which TorchInductor turns into index arithmetic."""

    def both(rng: Tensor, n: int) -> tuple[Tensor, Tensor]:
        row, step = torch.arange(n), torch.arange(n) + 3
        return masks.words(rng, row, step, 9, KIND["ZONEOUT_C"]), masks.words(rng, row, step, 37, KIND["INPUT"])

    rng = tensor(-(2**63), 2**63 - 1)
    compiled = torch.compile(both, fullgraph=True)(rng, 19)
    for of_compiled, expected in zip(compiled, both(rng, 19), strict=True):
        assert torch.equal(of_compiled, expected)


# --------------------------------------------------------------------------------------------------------------------
# The table
# --------------------------------------------------------------------------------------------------------------------


class Golden(NamedTuple):
    kind: str
    layer: int
    direction: int
    gate: int
    row: int
    step: int
    numbers: str

    @staticmethod
    def of(line: str) -> Golden:
        kind, *places, step, numbers = line.split(maxsplit=6)
        return Golden(kind, *map(int, places), SEQ if step == "SEQ" else int(step), numbers)


GOLDEN_RNG = (0x0123456789ABCDEF, -0x0123456789ABCDF0)
# Kind, layer, direction, gate, row, step, and the numbers of elements 0 to 9.
GOLDEN_LINES = """
ZONEOUT_C      2 1 0 3 70000 196986f8 b016d4fc a721725c 2c55f81e 20c0f8f5 fe6ef990 e7ec6ff3 60530d5e 84eabd99 cbb7492d
ZONEOUT_H      2 1 0 3 70000 c38d192f 1de80b08 4bb6f6ed 02fc706c af30a041 b1c44d04 799f9bbf fb9308d3 44ea4028 3b4ec5b5
UPDATE         2 1 0 3 70000 ccba71fe 4614274f 680aa464 f5da0f65 e3587bc3 6dc81e98 08244775 f03568ad c1687ee1 a7c83ae3
CELL           2 1 0 3 70000 cccaddde d12f4f0d f7fde2c3 511b3e20 0e6013b5 6787a028 7812f466 5e691688 baa535ef 6d97f639
HIDDEN         2 1 0 3   SEQ 3e5fcaf0 211f08ba 569d20c6 881b504a 659e92c7 93804293 ef75d0fd 26d63038 341e985e a413ab45
HIDDEN         2 1 2 3   SEQ 3266f19c b73b7b1e d57297a1 42075c35 25fa1e87 c0706846 e556c7ca cfb85393 5d0302ae 24b2bd1d
INPUT          0 0 0 3 70000 026691dd ba146e35 131e19c2 968f725b 60184415 b0567553 c2be2ec0 2576b462 a6e789e8 83079c7a
INPUT          0 0 2 3   SEQ 42f2a690 18c0435d 4b2de04e 8105512c 8077c7f5 2deed997 355719d1 21566c9c 3920f7e2 124a92bc
INTER_LAYER    2 0 0 3 70000 8951af9f d8c5e17f e3610a58 e09edde7 b58d25c6 051c827f 236a097a d79011f8 b41379d3 7f75a0e1
OUTPUT         2 0 0 3 70000 8d05d794 2572e505 58c053e5 7ef1174c a08705fd 3431b9de 1c78219b 6c72a8b5 2ed6f5ab 2f19ea3e
WEIGHT_HH      2 1 0 3   SEQ 5725cf9e 3563730e 413f7944 85e61b5d ac5fe593 6ab35469 0735f5e3 955e8aed 3f2194a2 0d40b28b
WEIGHT_IH      2 1 0 3   SEQ 44d89b4b 7bfb4190 1033a8a8 23c742f9 6f5136e2 b855cb73 d8bab01c b72c91a8 87847e0c 0456efae
WEIGHT_HR      2 1 0 3   SEQ 0d0c556a 7dd9d4c3 68d3e054 4125e3a0 d9b6f055 70990eb4 3fda72d2 6ad6ab20 edf8a89b 8035ed57
WEIGHT_HH_ROWS 2 1 0 0   SEQ 311874e0 f096b00a e71f9ee7 fd78a1ca 8cc669fa 445e53b4 e83667bd 7bd2ef52 09a86b35 5eba8f68
WEIGHT_IH_ROWS 2 1 0 0   SEQ 516a23f1 72a0d188 830f25a0 e95230fd 0cfd2361 d939b9a9 28ed95e9 bde0f5f4 57b7196a ac180f8d
WEIGHT_HR_ROWS 2 1 0 0   SEQ 90a121fe 334db335 b89e42c8 8fe34884 01f439e5 0bf957e7 e508f5fe 3b3de0cf 84feaf31 03e6b1d9
EMBEDDING      0 0 0 0   SEQ 9fb69dc1 247dcc86 bfedecc7 28933452 5fd19da8 0470d2f9 7d07fab3 08c2cc88 aaec6329 4c42804b
WORD           0 0 0 3 70000 b2b23dbb a4cee207 4dc1613d 19bc32de d856d811 ebf1f1d8 9187ff85 d67b8e21 510e298b 2bb55203
NOISING        0 0 0 3 70000 0f309d9b f957c7f4 ead7f8b3 c120b4a7 be90087d 21156275 bcac1179 c475c9fc 84e76c8b 51bcfcc0
"""
GOLDEN = tuple(map(Golden.of, GOLDEN_LINES.strip().splitlines()))

BACKENDS = {
    "python": masks.words,
    "cpu": lambda *given: torch.ops.fused_rnn_dropout.words(*given),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden.kind}-{golden.gate}")
def test_golden_vectors(golden, backend):
    stream = sites.stream(KIND[golden.kind], golden.layer, golden.direction, golden.gate)
    result = BACKENDS[backend](tensor(*GOLDEN_RNG), tensor(golden.row), tensor(golden.step), 10, stream)
    assert " ".join(f"{number:08x}" for number in result.flatten().tolist()) == golden.numbers


def test_every_kind_has_a_golden_vector():
    assert [golden.kind for golden in GOLDEN if not golden.gate] == [kind.name for kind in KINDS]
    assert [kind.number for kind in KINDS] == list(range(len(KINDS)))


def number_of(rng: tuple[int, int], i: int, row: int, step: int, stream: int) -> int:
    """The 32-bit number of one element, in Python's integers and straight from the rule."""
    low, high = (tuple(number >> shift & LOW for number in rng) for shift in (0, 32))
    key = tuple(philox_of_integers((low[1], high[1], DOMAIN, 0), (low[0], high[0]))[:2])
    halves = []
    for bit in (0, 1 << 15):
        word = philox_of_integers((i // 8, row, step, stream | bit), key)[i % 8 // 2]
        halves.append(word >> 16 if i % 2 else word & 0xFFFF)
    return halves[0] << 16 | halves[1]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("gate", [0, 3])
def test_layout_of_numbers(kind, gate):
    """Each number of the result is that of the fields which the rule names, for every element, row and step."""
    rng, row, step, stream = (7, -3), (0, 5, SEQ), (2, SEQ), sites.stream(kind.number, 3, 1, gate)
    result = masks.words(tensor(*rng), tensor(*row), tensor(*step), 11, stream)
    assert result.shape == (2, 3, 11) and result.dtype == torch.int64
    for (s, of_step), (r, of_row), i in itertools.product(enumerate(step), enumerate(row), range(11)):
        assert int(result[s, r, i]) == number_of(rng, i, of_row, of_step, stream)


def test_stream_holds_what_the_rule_says():
    assert sites.stream(14, 65535, 1, 3) == 14 | 1 << 8 | 3 << 9 | 65535 << 16
    assert sites.LOW == 1 << 15


def test_the_worked_example_of_the_documentation():
    """The code that docs/semantics.md shows runs, and says what the text and the kernels say."""
    text = (ROOT / "docs" / "semantics.md").read_text()
    [code] = re.findall(r"```python\n(# One bit by hand.*?)```", text, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    rng, i, example, step, layer = (found[name] for name in ("rng", "unit", "example", "step", "layer"))
    given = tensor(*rng), tensor(example), tensor(step), i + 1, sites.stream(KIND["UPDATE"], layer, 0)
    for words in BACKENDS.values():
        assert int(words(*given)[0, 0, i]) == found["number"]
    assert f"0x{found['field']:04x}" in text and f"0x{found['g']:04x}" in text
    assert found["dropped"] == (found["number"] < sites.threshold(0.3))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_operator_gives_the_same_numbers(kind):
    row = tensor(0, 1, 2, 255, 2**31 - 1, 2**31, LOW - 1, SEQ)
    step = tensor(0, 3, 2**31, LOW - 1, SEQ)
    rngs = ((0, 0), (-1, -1), (2**63 - 1, -(2**63)), (123456789, 987654321))
    places = ((0, 0, 0), (65535, 0, 3), (0, 1, 3), (65535, 1, 0))
    for rng, n, place in itertools.product(rngs, (0, 1, 2, 7, 8, 9, 31, 33, 70, 130), places):
        given = tensor(*rng), row, step, n, sites.stream(kind.number, *place)
        assert torch.equal(torch.ops.fused_rnn_dropout.words(*given), masks.words(*given)), given


def test_operator_gives_the_same_numbers_for_many_elements():
    """Wider than any vector, cache line or tile, and with counters that are not contiguous in memory."""
    row, step = torch.arange(0, 60, 3)[::2], torch.arange(5)
    for kind in KINDS:
        given = tensor(11, 12), row, step, 1153, sites.stream(kind.number, 1)
        assert torch.equal(torch.ops.fused_rnn_dropout.words(*given), masks.words(*given))


def test_bad_arguments_of_words_raise():
    rng, one = tensor(1, 2), tensor(0)
    with pytest.raises(ValueError, match="kinds 0 to 16 in its low byte, got 17"):
        masks.words(rng, one, one, 4, 17)
    with pytest.raises(ValueError, match="bit 15 clear"):
        masks.words(rng, one, one, 4, sites.stream(0, 1) | sites.LOW)
    with pytest.raises(ValueError, match="row should be a 1-D int64 tensor"):
        masks.words(rng, one.int(), one, 4, 0)
    with pytest.raises(ValueError, match="step should be a 1-D int64 tensor"):
        masks.words(rng, one, one[0], 4, 0)
    with pytest.raises(ValueError, match=r"rng should be an int64 tensor of shape \(2,\)"):
        masks.words(tensor(1, 2, 3), one, one, 4, 0)


# --------------------------------------------------------------------------------------------------------------------
# No field serves two masks
# --------------------------------------------------------------------------------------------------------------------

STEPS, EXAMPLES = (3, 4, 5), (0, 2)


def fields_of(rng: Tensor, row: Tensor, step: Tensor, n: int, stream: int) -> Tensor:
    """Shaped as ``words``, but each number says which field of which counter stands there."""
    i = torch.arange(n)
    small_row, small_step = (torch.where(counter == SEQ, 127, counter) for counter in (row, step))
    assert max(i.max(), small_row.max(), small_step.max()) <= 127  # the number stays unique
    return ((stream * 128 + i // 8) * 128 + small_row[:, None]) * 1024 + small_step[:, None, None] * 8 + i % 8


def fields_read(
    cell: str, specs: dict[str, sites.Spec], proj_size: int, monkeypatch: pytest.MonkeyPatch
) -> dict[str, set[int]]:
    """For every mask of a bidirectional model of two layers: which fields of which counters it reads."""
    for to_mask in ("factor", "binary", "zoned"):
        monkeypatch.setattr(masks, to_mask, lambda number, threshold, dtype: number)
    plan = sites.Plan.make(cell, specs)
    rng, thresholds, example_ids, steps = tensor(1, 2), tensor(*[2**31] * 10), tensor(*EXAMPLES), tensor(*STEPS)
    found = {}
    places = (("input_dropout", 0), ("inter_layer_dropout", 1), ("dropout", 1), ("output_dropout", 2))
    for name, layer in places:
        if name in specs:
            given = specs[name], thresholds[0], rng, KIND[SITE[name].kind], layer, 6, example_ids, steps, torch.float32
            found[name] = masks.locked(*given, fields_of)
    for layer, reverse in itertools.product((0, 1), (False, True)):
        of_layer = masks.layer(
            plan,
            cell,
            dict.fromkeys(sites.GROUPS, rng),
            thresholds,
            layer=layer,
            reverse=reverse,
            input_size=6,
            hidden_size=5,
            proj_size=proj_size,
            example_ids=example_ids,
            steps=steps,
            dtype=torch.float32,
            masks_on=True,
            words=fields_of,
        )
        found |= {
            f"{name}_l{layer}{'_reverse' * reverse}": of_layer[name]
            for name in of_layer
            if not name.startswith("cell_")
        }
    found["embedding"] = fields_of(rng, tensor(0), tensor(SEQ), 9, KIND["EMBEDDING"])
    monkeypatch.undo()
    read = {}
    for name, numbers in found.items():
        read[name] = set(numbers.flatten().tolist())
        assert len(read[name]) == numbers.numel(), f"{name} reads one field twice"
    return read


def configurations(cell: str):
    """Every combination of options that changes which fields a site reads."""
    locked = [
        sites.LockedDropout(0.5, per=per, batch_shared=shared)
        for per in ("sequence", "step")
        for shared in (False, True)
    ]
    hidden = [
        sites.HiddenDropout(0.5, tied=tied, batch_shared=shared) for tied in (True, False) for shared in (False, True)
    ]
    weight = [sites.WeightDropout(0.5, mode=mode, inputs=True) for mode in ("element", "row")]
    weight += [sites.WeightDropout(0.5, mode=mode, inputs=True, projection=True) for mode in ("element", "row")]
    weight += [sites.WeightDropout(0.5, inputs=True, projection=True, per_example=True)]
    for one, two, three in zip(
        [*locked, sites.LockedDropout(0.5, tied=False)], [*locked[1:], *locked[:2]], [*locked, locked[0]], strict=True
    ):
        for of_hidden, of_weight in itertools.product(hidden, weight):
            yield {
                "input_dropout": one,
                "inter_layer_dropout": two,
                "output_dropout": three,
                "hidden_dropout": of_hidden,
                "weight_dropout": of_weight,
            }
    for per in itertools.product(("sequence", "step"), repeat=4):
        specs = {
            "dropout": sites.StepDropout(0.5),
            "input_dropout": locked[1],
            "output_dropout": locked[2],
            "update_dropout": sites.UpdateDropout(0.5, per=per[0]),
            "cell_dropout": sites.CellDropout(0.5, per=per[1]),
            "zoneout_h": sites.Zoneout(0.5, per=per[2]),
            "zoneout_c": sites.Zoneout(0.5, per=per[3]),
        }
        yield {name: spec for name, spec in specs.items() if sites.SITE[name].fits(cell)}


@pytest.mark.parametrize(("cell", "proj_size"), [("LSTM", 0), ("LSTM", 3), ("GRU", 0), ("RNN_TANH", 0)])
def test_no_two_masks_read_the_same_field(cell, proj_size, monkeypatch):
    seen = 0
    for specs in configurations(cell):
        weight = specs.get("weight_dropout")
        if weight and weight.projection and not proj_size:
            continue
        read = fields_read(cell, specs, proj_size, monkeypatch)
        total = sum(map(len, read.values()))
        assert len(set().union(*read.values())) == total, [
            (one, two) for one, two in itertools.combinations(read, 2) if read[one] & read[two]
        ]
        seen += 1
    assert seen > 50


def test_shared_zoneout_reads_the_fields_of_zoneout_c(monkeypatch):
    for per in ("sequence", "step"):
        specs = {"zoneout_c": sites.Zoneout(0.5, per=per), "zoneout_h": sites.Zoneout(0.5, per=per, shared=True)}
        read = fields_read("LSTM", specs, 0, monkeypatch)
        assert read["zoneout_h_l1_reverse"] == read["zoneout_c_l1_reverse"]


def test_each_call_reads_another_layer_direction_example_and_step(monkeypatch):
    """The counters really hold what the table says, not merely something unique."""
    stream = sites.stream(KIND["UPDATE"], 1, 1)
    expected = fields_of(tensor(1, 2), tensor(*EXAMPLES), tensor(*STEPS), 5, stream)
    read = fields_read("LSTM", {"update_dropout": sites.UpdateDropout(0.5)}, 0, monkeypatch)
    assert read["update_l1_reverse"] == set(expected.flatten().tolist())


# --------------------------------------------------------------------------------------------------------------------
# Thresholds
# --------------------------------------------------------------------------------------------------------------------


def test_thresholds_at_the_ends():
    assert sites.threshold(0.0) == 0 and sites.threshold(1.0) == 2**32
    assert sites.keep_scale(0) == 1.0 and sites.keep_scale(2**32) == 0.0
    number = tensor(0, 1, LOW)
    for dtype in (torch.float32, torch.float64):
        assert masks.factor(number, torch.tensor(0), dtype).tolist() == [1, 1, 1]
        assert masks.factor(number, torch.tensor(2**32), dtype).tolist() == [0, 0, 0]
        assert masks.zoned(number, torch.tensor(2**32), dtype).tolist() == [1, 1, 1]
        assert masks.zoned(number, torch.tensor(0), dtype).tolist() == [0, 0, 0]
        assert masks.factor(number, torch.tensor(1), dtype).tolist()[0] == 0


def test_scale_is_rounded_once():
    draw = random.Random(2)
    thresholds = [1, 2**31, 2**32 - 1, *(draw.randrange(2**32) for _ in range(500))]
    exact = [Fraction(2**32, 2**32 - p) for p in thresholds]
    double = masks.keep_scale(torch.tensor(thresholds), torch.float64)
    assert double.tolist() == [float(value) for value in exact] == [sites.keep_scale(p) for p in thresholds]
    assert torch.equal(masks.keep_scale(torch.tensor(thresholds), torch.float32), double.float())


def test_threshold_is_within_half_a_step_of_the_rate():
    for rate in (0.01, 0.1, 0.15, 0.3, 0.5, 0.65, 0.9, 1 / 3):
        assert abs(Fraction(sites.threshold(rate), 2**32) - Fraction(rate)) <= Fraction(1, 2**33)


# --------------------------------------------------------------------------------------------------------------------
# The C++ copy
# --------------------------------------------------------------------------------------------------------------------


def constants(prefix: str) -> dict[str, int]:
    """The integer constants ``<prefix>NAME = value`` of the C++ headers."""
    text = "\n".join(path.read_text() for path in sorted(CORE.glob("*.h")))
    found = {}
    for name, value in re.findall(rf"\b{prefix}(\w+) = ([^,;]+)[,;]", text):
        number, _, shift = value.partition("<<")
        assert name not in found, f"{prefix}{name} is defined twice"
        found[name] = int(number.strip().rstrip("u"), 0) << int(shift or 0)
    return found


def test_cpp_header_has_the_same_counters():
    assert constants("KIND_") == KIND
    assert constants("(?=SEQ|RNG_DOMAIN)") == {"SEQ": SEQ, "RNG_DOMAIN": DOMAIN}
    assert constants("(?=STREAM_LOW)") == {"STREAM_LOW": sites.LOW}


def test_cpp_header_has_the_same_state_sites():
    text = (CORE / "sites.h").read_text()
    [table] = re.findall(r"STATE_SITES\[NUM_STATE_SITES\] = {(.*?)};", text, re.DOTALL)
    rows = re.findall(r"\{FLAG_(\w+), FLAG_(\w+), KIND_(\w+), SITE_(\w+)\}", table)
    expected = {site.name: (site.flag, site.sequence_flag, site.kind, site.name.upper()) for site in sites.STATE_SITES}
    assert {row[3].lower(): row for row in rows} == expected


def test_cpp_header_has_the_same_outer_sites():
    text = (CORE / "outer_sites.h").read_text()
    [table] = re.findall(r"OUTER_SITES\[\] = {(.*?)};", text, re.DOTALL)
    table = re.sub(r"\b(FLAG|KIND|SITE|GROUP)_", "", table)
    rows = [re.split(r",\s*", row) for row in re.findall(r"\{(.*?)\}", table, re.DOTALL)]
    expected = [
        [site.flag, site.sequence_flag or "0", {o.name: o.flag for o in site.options}.get("batch_shared", "0"),
         site.kind, site.name.upper(), site.group.upper(), str(site.writes).lower()]
        for site in sites.OUTER_SITES
    ]  # fmt: skip
    assert rows == expected


def test_cpp_header_has_the_same_sites_and_flags():
    assert constants("SITE_") == {name.upper(): index for index, name in enumerate(SITE_NAMES)}
    assert constants("(?=NUM_SITES)") == {"NUM_SITES": len(SITE_NAMES)}
    assert constants("GROUP_") == {name.upper(): index for index, name in enumerate(GROUPS)}
    assert constants("(?=NUM_GROUPS)") == {"NUM_GROUPS": len(GROUPS)}
    names = re.search(r"SITE_NAMES\[NUM_SITES\] = {(.*?)}", (CORE / "flags.h").read_text(), re.DOTALL)
    assert names and tuple(re.findall(r'"(\w+)"', names[1])) == SITE_NAMES
    assert constants("FLAG_") == sites.FLAG
    [flags] = re.findall(r"SITE_FLAGS\[NUM_SITES\] = {(.*?)}", (CORE / "flags.h").read_text(), re.DOTALL)
    bits = [bit.removeprefix("FLAG_") for bit in re.split(r",\s*", flags.strip())]
    assert bits == [site.flag for site in sites.SITES]
