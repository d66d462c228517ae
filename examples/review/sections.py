"""The review's techniques in its own order: the rows that show each, beside what its authors published."""

from __future__ import annotations

from collections.abc import Mapping

from .grid import AWD, AWD_EXTRAS, NONE

SECTIONS: dict[str, Mapping[str, str]] = {
    "dropout": {
        NONE: "",
        "output_dropout 0.25": "",
        "output_dropout 0.5": "0.5 for hidden units: MNIST errors 160 to 110 (Srivastava)",
        "output_dropout 0.75": "",
        "input_dropout 0.1": "",
        "input_dropout 0.25": "0.2 for inputs (Srivastava)",
        "input_dropout 0.5": "",
    },
    "dropconnect": {
        "weight_dropout 0.25": "",
        "weight_dropout 0.5": "MNIST error 0.21 %, dropout 0.27 % (Wan)",
        "weight_dropout by row 0.25": "",
        "weight_dropout by row 0.5": "",
    },
    "forward": {
        NONE: "PTB test perplexity 114.5 (2 x 200)",
        "output per step 0.5": "",
        "input, output per step 0.25": "",
        "input, output per step 0.5": "82.7 (2 x 650, 0.5); 78.4 (2 x 1500, 0.65)",
        "all places per step 0.5, 2 layers": "",
    },
    "variational": {
        "locked in 0.2, out 0.5": "",
        "input, output locked 0.25": "",
        "input, output locked 0.5": "",
        "hidden_dropout 0.3": "PTB test perplexity, all sites tied: 75.0 ± 0.1, MC 74.1",
        "hidden_dropout untied 0.3": "untied: 75.2 ± 0.2, MC 73.4",
        "all places per sequence 0.5, 2 layers": "",
    },
    "recurrent": {
        "cell_dropout 0.3": "Moon: phones of TIMIT, 16.29 % wrong; no language model",
        "cell_dropout per step 0.25": "",
        "cell_dropout per step, paper 0.25": "",
        "update_dropout 0.25": "characters of PTB 1.321, PTB words 87.0 (as re-run by Krueger)",
        "update_dropout 0.5": "",
        "update_dropout per sequence 0.5": "",
    },
    "zoneout": {
        NONE: "characters of PTB: 1.356 bits",
        "zoneout c 0.5, h 0.05": "1.27 bits; PTB words 77.4 with 0.25, 0.025",
        "zoneout c 0.25, h 0.025": "",
        "zoneout c 0.15, h 0.15": "",
        "zoneout c 0.5, h 0.5": "",
        "zoneout shared 0.15": "permuted MNIST, error 0.102 to 0.069",
        "zoneout_c 0.25": "",
        "zoneout_h 0.25": "",
    },
    "awd": {
        NONE: "",
        "awd sites": "",
        **{f"awd sites without {site}": "" for site in AWD},
        "awd": "PTB test perplexity 58.8 before its last fine-tuning",
        "awd without weight_dropout": "68.9",
        **{f"awd without {extra}": "62.7" if extra == "embedding_dropout" else "60.3 (both)" for extra in AWD_EXTRAS},
        "awd, NT-ASGD": "without: 63.7",
        "embedding_dropout 0.1": "",
        "AR, TAR 2": "",
    },
    "fraternal": {
        "weight_dropout 0.5": "PTB test perplexity 58.8 (AWD-LSTM)",
        **{f"fraternal {kappa:g}": "58.0; 56.8 fine-tuned" if kappa == 0.1 else "" for kappa in (0.1, 0.15, 0.3)},
    },
    "curriculum": {"weight_dropout 0.5": "", "weight_dropout 0.5, curriculum": "images only"},
    "others": {
        "none, Adam 0.002": "",
        NONE: "",
        "none, Adam 0.008": "",
        "none, H 128": "",
        "none, H 512": "",
        "none, 2 layers": "",
        "none, GRU": "",
        "weight_dropout 0.5, GRU": "",
        "hidden_dropout 0.25, GRU": "",
        "update_dropout 0.25, GRU": "",
        "cell_dropout 0.25, GRU": "",
        "zoneout_h 0.1, GRU": "",
    },
}
"""By name of the table in ``docs/review.md``: rows, and the published figure that stands beside each."""
