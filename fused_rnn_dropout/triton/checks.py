"""What the operators refuse, in the words of the compiled ones: a kernel reads whatever its pointers lead to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..sites import FLAG, GROUPS, LOW, OUTER_SITES, SEQ, SITES, STATE_SITES, bad_threshold, outer_sites

_DRAWING = ("HIDDEN", "WEIGHT_HH", "WEIGHT_IH", "WEIGHT_HR", *(site.flag for site in (*STATE_SITES, *OUTER_SITES)))

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def check_floating(**dtypes: Tensor | torch.dtype | None) -> None:
    for name, given in dtypes.items():
        dtype = given.dtype if isinstance(given, Tensor) else given
        check(dtype is None or dtype in FLOATING, f"{name} must be float32, float64, float16 or bfloat16")


def check_shapes(shapes: Mapping[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    for name, (tensor, shape) in shapes.items():
        fits = tensor is None or tuple(tensor.shape) == shape
        check(fits, f"{name} has a shape that does not fit the other arguments")


def check_device(device: torch.device, **tensors: Tensor | None) -> None:
    """A pointer to another device's memory must not reach a kernel."""
    for name, tensor in tensors.items():
        check(tensor is None or tensor.device == device, f"{name} must be on {device}, where x is")


def check_saved(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Nothing that a forward kept is converted: another dtype would not be what it kept."""
    check_shapes({name: (tensor, shape)})
    check(tensor.dtype == dtype, f"{name} must be what the forward returned")


def check_integers(name: str, tensor: Tensor, count: int | None = None) -> None:
    check(tensor.dtype == torch.int64, f"{name} must be an int64 tensor")
    fits = count is None or tensor.numel() == count
    check(fits, f"{name} must have {count} elements, got {tensor.numel()}")


def _values(tensor: Tensor) -> list[int]:
    """Only of a CPU tensor: a look at those of a device would make the host wait for it."""
    return tensor.reshape(-1).tolist() if tensor.device.type == "cpu" else []


def check_thresholds(thresholds: Tensor) -> None:
    check_integers("thresholds", thresholds, len(SITES))
    fault = bad_threshold(values) if (values := _values(thresholds)) else None
    check(fault is None, fault or "")


def check_examples(example_ids: Tensor | None, batch: int) -> None:
    if example_ids is not None:
        check_integers("example_ids", example_ids, batch)
        for value in _values(example_ids):
            check(0 <= value < SEQ, f"example_ids must be in [0, 2^32 - 1), got {value}")


def check_steps(step_offset: int, steps: int) -> None:
    check(
        0 <= step_offset <= SEQ - steps,
        f"step_offset and the number of steps must keep every step in [0, 2^32 - 1), got step_offset {step_offset}",
    )


def check_stream(stream: int) -> None:
    check(0 <= stream <= SEQ, f"stream must be in [0, 2^32), got {stream}")
    check(not stream & LOW, f"stream must have bit 15 clear, which the second call of an element has, got {stream}")


def check_counters(name: str, values: Tensor) -> None:
    check_integers(name, values)
    for value in _values(values):
        check(0 <= value <= SEQ, f"counter values must be in [0, 2^32), got {value}")


def check_random(
    device: torch.device,
    example_ids: Tensor | None,
    rng: Tensor | None,
    thresholds: Tensor | None,
    flags: int,
    layer: int,
    step_offset: int,
    batch: int,
    steps: int,
) -> None:
    """The randomness arguments of a layer."""
    check(0 <= flags < 2 * FLAG["MASKS_ON"], f"flags has bits that mean nothing: {flags}")
    for verb, writes in (("reads", False), ("writes", True)):
        check(len(outer_sites(flags, writes)) < 2, f"flags has more than one site on what a layer {verb}: {flags}")
    # What a layer writes draws in the name of the layer that would read it.
    most = 2**16 - bool(outer_sites(flags, writes=True))
    check(0 <= layer < most, f"layer must be in [0, {most}), got {layer}")
    check_steps(step_offset, steps)
    check_examples(example_ids, batch)
    if flags:
        check(thresholds is not None, "thresholds are needed where a site is configured")
    if thresholds is not None:
        check_thresholds(thresholds)
    needed = flags & FLAG["MASKS_ON"] and any(flags & FLAG[site] for site in _DRAWING)
    check(rng is not None or not needed, "rng is needed where sites draw masks")
    if rng is not None:
        check_integers("rng", rng)
        fits = tuple(rng.shape) == (len(GROUPS), 2)
        check(fits, f"rng must have {len(GROUPS)} rows of 2 elements, a pair for each group of sites")
    check_device(device, example_ids=example_ids, rng=rng, thresholds=thresholds)
