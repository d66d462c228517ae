"""The random words: Philox's known answers, the counter table, its golden vectors, and the C++ copy of both."""

from __future__ import annotations

import itertools
import random
import re
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import fused_rnn_dropout  # noqa: F401  registers the operators
from fused_rnn_dropout import masks, sites
from fused_rnn_dropout.sites import DOMAIN, GROUPS, KIND, KINDS, SEQ, SITE_NAMES

CORE = Path(__file__).parents[2] / "csrc" / "core"
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
        b, c = torch.arange(n), torch.arange(n) + 3
        return masks.words(rng, b, c, 9, KIND["STATE"]), masks.words(rng, b, c, 37, KIND["INPUT"])

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
    b: int
    c: int
    words: str


GOLDEN_RNG = (0x0123456789ABCDEF, -0x0123456789ABCDF0)
GOLDEN = (  # the first two calls of each: units 0 and 1, or units 0 to 7
    Golden("STATE", 2, 1, 3, 70000, "b0161969 2c55a721 fe6e20c0 6053e7ec cbb784ea bc4ca654 2a4ac5f9 bc085d49"),
    Golden("STATE_SEQUENCE", 2, 1, 3, SEQ, "93fbef67 5c654a48 016e95f8 f7287548 04bc81f3 adf77da6 9b332d95 4f057130"),
    Golden("HIDDEN", 2, 1, 3, SEQ, "189dac42 ffab14c2 22a3c742 eea30fff e3750fec 191175da c9c73735 a0613512"),
    Golden("INPUT", 0, 0, 3, 70000, "b97dbddd 3de190b6 4b226f40 c3b0ee70 419555f8 e6867e79 ba301d1f 2f11e2cc"),
    Golden("INTER_LAYER", 2, 0, 3, 70000, "e4a1b17a d9c97d9d c3b7e1d6 cada129b a1e85e7f 0362113c b2acc0dc fce1f4a2"),
    Golden("OUTPUT", 2, 0, 3, 70000, "2baf30ed 1db08324 d2b6b021 7ce82634 14cc038d 2880c984 d33d64f6 82706547"),
    Golden("INPUT_UNTIED", 0, 0, 3, SEQ, "c9af193b 9900e45d 39d83dba 14f9353d 7d893930 2619eb3f 87dd3572 f836d4d6"),
    Golden("WEIGHT_HH", 2, 1, 3, SEQ, "d0665e12 89456ac4 d972eca2 2d40222a 5cb9ff4a 656419a4 b22aa31d 969886ae"),
    Golden("WEIGHT_IH", 2, 1, 3, SEQ, "35635725 85e6413f 6ab3ac5f 955e0735 0d403f21 d11fd2b8 7eaa8542 63b5ee3a"),
    Golden("WEIGHT_HR", 2, 1, 3, SEQ, "7bfb44d8 23c71033 b8556f51 b72cd8ba 04568784 3e04fd84 7af1faf0 79e1dccd"),
    Golden("WEIGHT_ROW", 2, 1, 1, SEQ, "26953435 5506bd48 4e3dce55 b0ee6d7c d968b594 31322d9b 003c0643 63a49809"),
    Golden("EMBEDDING", 0, 0, 0, SEQ, "a6716391 5b685c57 90f6d176 0212d2d7 d3d17443 7178d711 668b2e71 b4fc28c8"),
    Golden("WORD", 0, 0, 3, 70000, "aa756a23 f5dda221 a671a91c 5bac4cc3 21aed70b b09ddcc6 aa1e2b78 cc71af92"),
    Golden("NOISING", 0, 0, 3, 70000, "85ef75c5 7bdaa5de 584d7952 38b6ea3f cf55ef23 99ea283f 223659c0 07599a5b"),
)

BACKENDS = {
    "python": masks.words,
    "cpu": lambda *given: torch.ops.fused_rnn_dropout.words(*given),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.kind)
def test_golden_vectors(golden, backend):
    units = 2 if sites.KINDS[KIND[golden.kind]].a == "unit" else 8
    stream = sites.stream(KIND[golden.kind], golden.layer, golden.direction)
    result = BACKENDS[backend](tensor(*GOLDEN_RNG), tensor(golden.b), tensor(golden.c), units, stream)
    assert " ".join(f"{word:08x}" for word in result.flatten().tolist()) == golden.words


def test_every_kind_has_a_golden_vector():
    assert [golden.kind for golden in GOLDEN] == [kind.name for kind in KINDS]
    assert [kind.number for kind in KINDS] == list(range(len(KINDS)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_layout_of_words(kind):
    """Each word of the result is the one that the table names, for every unit, b and c."""
    rng, b, c, stream = tensor(7, -3), (0, 5, SEQ), (2, SEQ), sites.stream(kind.number, 3, 1)
    units = 7
    result = masks.words(rng, tensor(*b), tensor(*c), units, stream)
    key = philox_of_integers((LOW - 2, LOW, DOMAIN, 0), (7, 0))[:2]
    own_call = kind.a == "unit"
    assert result.shape == ((2, 3, units, 4) if own_call else (2, 3, units)) and result.dtype == torch.int64
    for (i, of_c), (j, of_b), unit in itertools.product(enumerate(c), enumerate(b), range(units)):
        four = philox_of_integers((unit if own_call else unit // 4, of_b, of_c, stream), tuple(key))
        assert result[i, j, unit].tolist() == (four if own_call else four[unit % 4])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_operator_gives_the_same_words(kind):
    b = tensor(0, 1, 2, 255, 2**31 - 1, 2**31, LOW - 1, SEQ)
    c = tensor(0, 3, 2**31, LOW - 1, SEQ)
    rngs = ((0, 0), (-1, -1), (2**63 - 1, -(2**63)), (123456789, 987654321))
    for rng, units, layer, direction in itertools.product(
        rngs, (0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 33, 70), (0, 65535), (0, 1)
    ):
        given = tensor(*rng), b, c, units, sites.stream(kind.number, layer, direction)
        assert torch.equal(torch.ops.fused_rnn_dropout.words(*given), masks.words(*given)), given


def test_operator_gives_the_same_words_for_many_units():
    """Wider than any vector, cache line or tile, and with counters that are not contiguous in memory."""
    b, c = torch.arange(0, 60, 3)[::2], torch.arange(5)
    for kind in KINDS:
        given = tensor(11, 12), b, c, 1153, sites.stream(kind.number, 1)
        assert torch.equal(torch.ops.fused_rnn_dropout.words(*given), masks.words(*given))


def test_bad_arguments_of_words_raise():
    rng, one = tensor(1, 2), tensor(0)
    with pytest.raises(ValueError, match="kinds 0 to 13 in its low byte, got 14"):
        masks.words(rng, one, one, 4, 14)
    with pytest.raises(ValueError, match="b should be a 1-D int64 tensor"):
        masks.words(rng, one.int(), one, 4, 0)
    with pytest.raises(ValueError, match="c should be a 1-D int64 tensor"):
        masks.words(rng, one, one[0], 4, 0)
    with pytest.raises(ValueError, match=r"rng should be an int64 tensor of shape \(2,\)"):
        masks.words(tensor(1, 2, 3), one, one, 4, 0)


# --------------------------------------------------------------------------------------------------------------------
# No random word serves two masks
# --------------------------------------------------------------------------------------------------------------------

STEPS, EXAMPLES = (3, 4, 5), (0, 2)


def call_numbers(rng: Tensor, b: Tensor, c: Tensor, units: int, stream: int) -> Tensor:
    """Shaped as ``words``, but each number says which word of which counter stands there."""
    own_call = KINDS[stream & 0xFF].a == "unit"
    a = torch.arange(units) if own_call else torch.arange(units) // 4
    word = torch.arange(4) if own_call else torch.arange(units) % 4
    small_b, small_c = (torch.where(counter == SEQ, 127, counter) for counter in (b, c))
    assert max(a.max(), small_b.max(), small_c.max()) <= 127  # the number stays unique
    number = ((stream * 128 + a) * 128 + small_b[:, None]) * 128 + small_c[:, None, None]
    return number[..., None] * 4 + word if own_call else number * 4 + word


def words_read(
    cell: str, specs: dict[str, sites.Spec], proj_size: int, monkeypatch: pytest.MonkeyPatch
) -> dict[str, set[int]]:
    """For every mask of a bidirectional model of two layers: which words of which counters it reads."""
    for to_mask in ("factor", "binary", "zoned"):
        monkeypatch.setattr(masks, to_mask, lambda number, threshold, dtype: number)
    plan = sites.Plan.make(cell, specs)
    rng, thresholds, example_ids, steps = tensor(1, 2), tensor(*[2**31] * 10), tensor(*EXAMPLES), tensor(*STEPS)
    found = {}
    places = (("input_dropout", "INPUT", 0), ("inter_layer_dropout", "INTER_LAYER", 1), ("dropout", "INTER_LAYER", 1))
    for name, kind, layer in (*places, ("output_dropout", "OUTPUT", 2)):
        if name in specs:
            given = specs[name], thresholds[0], rng, KIND[kind], layer, 6, example_ids, steps, torch.float32
            found[name] = masks.locked(*given, call_numbers)
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
            words=call_numbers,
        )
        found |= {
            f"{name}_l{layer}{'_reverse' * reverse}": of_layer[name]
            for name in of_layer
            if not name.startswith("cell_")
        }
    found["embedding"] = call_numbers(rng, tensor(0), tensor(SEQ), 9, KIND["EMBEDDING"])
    monkeypatch.undo()
    read = {}
    for name, numbers in found.items():
        read[name] = set(numbers.flatten().tolist())
        assert len(read[name]) == numbers.numel(), f"{name} reads one word twice"
    return read


def configurations(cell: str):
    """Every combination of options that changes which words a site reads."""
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
        yield {
            "dropout": sites.StepDropout(0.5),
            "input_dropout": locked[1],
            "output_dropout": locked[2],
            "update_dropout": sites.UpdateDropout(0.5, per=per[0]),
            "cell_dropout": sites.CellDropout(0.5, per=per[1]),
            "zoneout_h": sites.Zoneout(0.5, per=per[2]),
        } | ({"zoneout_c": sites.Zoneout(0.5, per=per[3])} if cell == "LSTM" else {})


@pytest.mark.parametrize(("cell", "proj_size"), [("LSTM", 0), ("LSTM", 3), ("GRU", 0)])
def test_no_two_masks_read_the_same_word(cell, proj_size, monkeypatch):
    seen = 0
    for specs in configurations(cell):
        weight = specs.get("weight_dropout")
        if weight and weight.projection and not proj_size:
            continue
        read = words_read(cell, specs, proj_size, monkeypatch)
        total = sum(map(len, read.values()))
        assert len(set().union(*read.values())) == total, [
            (one, two) for one, two in itertools.combinations(read, 2) if read[one] & read[two]
        ]
        seen += 1
    assert seen > 50


def test_shared_zoneout_reads_the_words_of_zoneout_c(monkeypatch):
    for per in ("sequence", "step"):
        specs = {"zoneout_c": sites.Zoneout(0.5, per=per), "zoneout_h": sites.Zoneout(0.5, per=per, shared=True)}
        read = words_read("LSTM", specs, 0, monkeypatch)
        assert read["zoneout_h_l1_reverse"] == read["zoneout_c_l1_reverse"]


def test_each_call_reads_another_layer_direction_example_and_step(monkeypatch):
    """The counters really hold what the table says, not merely something unique."""
    stream = sites.stream(KIND["STATE"], 1, 1)
    expected = call_numbers(tensor(1, 2), tensor(*EXAMPLES), tensor(*STEPS), 5, stream)[..., 2]
    read = words_read("LSTM", {"update_dropout": sites.UpdateDropout(0.5)}, 0, monkeypatch)
    assert read["update_l1_reverse"] == set(expected.flatten().tolist())


# --------------------------------------------------------------------------------------------------------------------
# Thresholds
# --------------------------------------------------------------------------------------------------------------------


def test_thresholds_at_the_ends():
    assert sites.threshold(0.0) == 0 and sites.threshold(1.0) == 2**32
    assert sites.keep_scale(0) == 1.0 and sites.keep_scale(2**32) == 0.0
    word = tensor(0, 1, LOW)
    for dtype in (torch.float32, torch.float64):
        assert masks.factor(word, torch.tensor(0), dtype).tolist() == [1, 1, 1]
        assert masks.factor(word, torch.tensor(2**32), dtype).tolist() == [0, 0, 0]
        assert masks.zoned(word, torch.tensor(2**32), dtype).tolist() == [1, 1, 1]
        assert masks.zoned(word, torch.tensor(0), dtype).tolist() == [0, 0, 0]
        assert masks.factor(word, torch.tensor(1), dtype).tolist()[0] == 0


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
    names = {"ZONEOUT_C": "zoneout_c", "ZONEOUT_H": "zoneout_h", "UPDATE": "update_dropout", "CELL": "cell_dropout"}
    for kind in ("STATE", "STATE_SEQUENCE"):
        of_site = {name: KINDS[KIND[kind]].words.index(site) for name, site in names.items()}
        assert constants("WORD_") == of_site


def test_cpp_header_has_the_same_sites_and_flags():
    assert constants("SITE_") == {name.upper(): index for index, name in enumerate(SITE_NAMES)}
    assert constants("(?=NUM_SITES)") == {"NUM_SITES": len(SITE_NAMES)}
    assert constants("GROUP_") == {name.upper(): index for index, name in enumerate(GROUPS)}
    assert constants("(?=NUM_GROUPS)") == {"NUM_GROUPS": len(GROUPS)}
    names = re.search(r"SITE_NAMES\[NUM_SITES\] = {(.*?)}", (CORE / "flags.h").read_text(), re.DOTALL)
    assert names and tuple(re.findall(r'"(\w+)"', names[1])) == SITE_NAMES
    assert constants("FLAG_") == sites.FLAG
