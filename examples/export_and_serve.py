"""Exporting a model with its masks, and serving it over HTTP: answers with an error bar.

    python -m examples.export_and_serve export model.pt2
    python -m examples.export_and_serve serve model.pt2 --port 8000
    curl -d '{"series": [0.1, 0.4, 0.9]}' http://127.0.0.1:8000

The exported program takes the pair of numbers that its masks come from as an input. The server so draws as many samples
as it likes, answers the same question twice with the same numbers, and computes all samples in one call: they are rows
of a batch. ``docs/deploy.md`` has the other ways: AOTInductor, C++, TorchScript, ONNX, weights alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fused_rnn_dropout as frd  # a serving process needs it too, before it loads a program

SAMPLES, SEED = 64, 2024


class Model(nn.Module):
    """From series (T, B, 1) and a pair of numbers int64 (2,) to the next value (B,)."""

    def __init__(self, units: int = 32) -> None:
        super().__init__()
        self.rnn = frd.GRU(1, units, hidden_dropout=0.2, update_dropout=0.1)
        self.head = nn.Linear(units, 1)

    def forward(self, series: Tensor, rng: Tensor) -> Tensor:
        return self.head(self.rnn(series, rng=rng)[0][-1])[:, 0]


def export(path: Path, updates: int) -> None:
    """Trains a model on sine waves for a moment, and writes it with masks on."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(updates):
        series = torch.sin(0.4 * torch.arange(21.0)[:, None] + 6.3 * torch.rand(32))[..., None]
        loss = (model(series[:-1], frd.draw_rng("cpu")) - series[-1, :, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frd.mc_dropout(model.eval())
    sizes = {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}
    example = (torch.randn(7, 3, 1), frd.draw_rng("cpu"))
    torch.export.save(torch.export.export(model, example, dynamic_shapes=(sizes, None)), path)
    print(f"wrote {path}, {path.stat().st_size / 1024:.0f} KiB")


def answer(program: Callable[[Tensor, Tensor], Tensor], series: Any) -> dict[str, float]:
    """Mean and deviation of the next value over the samples.

    Raises:
        ValueError: ``series`` is no list of numbers.
    """
    if not isinstance(series, list) or not series or not all(isinstance(x, int | float) for x in series):
        raise ValueError("series should be a list of at least one number")
    x = torch.tensor(series, dtype=torch.float32)[:, None, None].expand(-1, SAMPLES, 1).contiguous()
    with torch.inference_mode():
        found = program(x, torch.tensor([SEED, 0]))  # each row has masks of its own
    return {"mean": float(found.mean()), "deviation": float(found.std())}


def server(path: Path, port: int) -> ThreadingHTTPServer:
    """A server on this machine alone; port 0 takes a free one."""
    program = torch.export.load(path).module()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, body = 200, answer(program, json.loads(text)["series"])
            except (ValueError, KeyError, TypeError) as error:
                status, body = 400, {"error": f'send {{"series": [number, ...]}}: {error}'}  # type: ignore[dict-item]
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            """One line a request is too much for an example."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.export_and_serve", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    exported, served = commands.add_parser("export"), commands.add_parser("serve")
    for command in (exported, served):
        command.add_argument("path", type=Path)
    exported.add_argument("--updates", type=int, default=300, help="(default: %(default)s)")
    served.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.command == "export":
        export(options.path, options.updates)
        return
    with server(options.path, options.port) as running:
        print(f"listening on http://127.0.0.1:{running.server_port}", flush=True)
        running.serve_forever()


if __name__ == "__main__":
    main()
