"""A site as a command line has it: its rate, or its rate and options."""

from __future__ import annotations

import dataclasses
from typing import Any

from .options import Spec
from .sites import make_spec


def spec_of(name: str, text: str, between: str = ",") -> Spec:
    """The options object of site ``name`` from ``0.5`` or, with "," in ``between``, from ``0.5,mode=row,inputs=true``.

    Raises:
        ValueError: no number, a rate outside [0, 1], or what the site has no option for.
        TypeError: a value that the option cannot have.
    """
    rate, *options = text.split(between)
    spec = make_spec(name, float(rate))
    fields = {field.name: field.default for field in dataclasses.fields(spec)[1:]}
    values: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in fields:
            allowed = f"its options are {', '.join(fields)}" if fields else "it has no options"
            raise ValueError(f"{key!r} is no option of {name}: {allowed}")
        values[key] = {"true": True, "false": False}.get(value.lower(), value)
    return make_spec(name, dataclasses.replace(spec, **values))
