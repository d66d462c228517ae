"""Runs examples/first_steps.ipynb and keeps its outputs: python tools/notebook.py

Needs nbformat, nbclient, ipykernel and matplotlib. What differs from run to run, or tells of the machine, is left out.
"""

from __future__ import annotations

import os
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "examples" / "first_steps.ipynb"


def main() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
    nbformat.validate(notebook)
    nbformat.write(notebook, PATH)
    print(f"wrote {PATH.relative_to(ROOT)}, {PATH.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
