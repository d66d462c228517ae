"""Every technique of the review and those around it, by name: where it is, which test holds it, which rows show it."""

from __future__ import annotations

from dataclasses import dataclass

from .grid import AWD_EXTRAS, NONE


@dataclass(frozen=True)
class Technique:
    """One row of the table of techniques.

    Attributes:
        name: what the literature calls it.
        source: its papers.
        where: names of this package.
        tests: files below ``tests``.
        rows: of the grid; none where no row shows it.
        base: the row that those are compared with.
        averaged: whether the effect is that of averaging over masks, at the same row, in the place of ``base``.
    """

    name: str
    source: str
    where: str
    tests: tuple[str, ...]
    rows: tuple[str, ...] = ()
    base: str = NONE
    averaged: bool = False


_SITES = ("kernels/test_sites.py",)
_WEIGHT = "weight_dropout 0.5"

TECHNIQUES: tuple[Technique, ...] = (
    # Those of the review, in its order.
    Technique(
        "dropout",
        "Hinton et al. 2012; Srivastava et al. 2014",
        "`output_dropout`, `input_dropout`, `OutputDropout`",
        (*_SITES, "training/test_awd_lstm.py"),
        ("output_dropout 0.5", "input_dropout 0.25"),
    ),
    Technique(
        "DropConnect: a mask for each example, inference by moments",
        "Wan et al. 2013",
        "`WeightDropout(per_example=True)`, `dropconnect_inference`",
        ("kernels/test_reference.py", "training/test_fast_dropout.py"),
    ),
    Technique(
        "fast dropout: moments in the place of masks",
        "Wang & Manning 2013; Bayer et al. 2013",
        "`fast_dropout_rnn`, `fast_dropout_lstm`",
        ("training/test_fast_dropout.py",),
    ),
    Technique(
        "dropout of what does not recur, per step",
        "Zaremba et al. 2014; Pham et al. 2014",
        '`dropout`, `LockedDropout(per="step")`',
        _SITES,
        ("output per step 0.5", "input, output per step 0.5"),
    ),
    Technique(
        "variational dropout, tied",
        "Gal & Ghahramani 2016",
        "`input_dropout`, `inter_layer_dropout`, `output_dropout`, `hidden_dropout`",
        _SITES,
        ("hidden_dropout 0.3", "locked in 0.2, out 0.5"),
    ),
    Technique(
        "variational dropout, untied",
        "Gal & Ghahramani 2016",
        "`HiddenDropout(tied=False)`, `LockedDropout(tied=False)`",
        ("kernels/test_reference.py",),
        ("hidden_dropout untied 0.3",),
    ),
    Technique(
        "MC dropout: the mean over masks",
        "Gal & Ghahramani 2016",
        "`mc=True`, `frd.mc_dropout`, `mc_predict`",
        ("training/test_mc_predict.py",),
        ("hidden_dropout 0.3", "hidden_dropout untied 0.3", _WEIGHT),
        averaged=True,
    ),
    Technique(
        "MC dropout, tuned: multiplier, power mean, temperature",
        "Melis et al. 2018",
        "`mc_predict`",
        ("training/test_mc_predict.py",),
    ),
    Technique(
        "RNNDrop",
        "Moon et al. 2015",
        "`cell_dropout`",
        _SITES,
        ("cell_dropout 0.3", "cell_dropout per step, paper 0.25"),
    ),
    Technique(
        "recurrent dropout without memory loss",
        "Semeniuta et al. 2016",
        "`update_dropout`",
        _SITES,
        ("update_dropout 0.25", "update_dropout 0.5", "update_dropout per sequence 0.5"),
    ),
    Technique(
        "zoneout",
        "Krueger et al. 2017",
        "`zoneout_c`, `zoneout_h`",
        _SITES,
        ("zoneout c 0.15, h 0.15", "zoneout c 0.5, h 0.05", "zoneout shared 0.15"),
    ),
    Technique(
        "zoneout whose mask the gates share; zoneout of whole steps",
        "Krueger et al. 2017; Huang et al. 2016",
        "`Zoneout(gate_shared=True)`, `Zoneout(unit_shared=True)`",
        ("kernels/test_reference.py", "masks/test_noise.py"),
    ),
    Technique(
        "weight drop",
        "Merity et al. 2017",
        "`weight_dropout`",
        (*_SITES, "surface/test_known_bugs.py"),
        (_WEIGHT, "weight_dropout by row 0.5"),
    ),
    Technique(
        "embedding dropout",
        "Gal & Ghahramani 2016; Merity et al. 2017",
        "`EmbeddingDropout`",
        ("training/test_embedding_dropout.py",),
        ("embedding_dropout 0.1", "embedding_dropout 0.25"),
    ),
    Technique(
        "activation regularisation, and its temporal form",
        "Merity et al. 2017",
        "`activation_regularization`, `temporal_activation_regularization`",
        ("training/test_activations.py",),
        ("AR, TAR 2",),
    ),
    Technique(
        "BPTT over random lengths",
        "Merity et al. 2017",
        "`random_bptt_length`, `random_bptt_slices`, `bptt_learning_rate`",
        ("training/test_bptt.py",),
        ("random lengths",),
    ),
    Technique(
        "NT-ASGD", "Merity et al. 2017", "`NTASGD`", ("training/test_ntasgd.py",), ("none, NT-ASGD",), base="none, SGD"
    ),
    Technique(
        "AWD-LSTM: all of these; its language model and classifier",
        "Merity et al. 2017; Howard & Ruder 2018",
        "`AWDLSTM`, `AWDLSTMClassifier`, `load_fastai`",
        ("training/test_awd_lstm.py",),
        ("awd sites", "awd"),
    ),
    Technique(
        "what each part of AWD-LSTM is worth",
        "Merity et al. 2017",
        "`AWDLSTM`",
        ("tools/test_review_recipe.py",),
        ("awd without weight_dropout", *(f"awd without {extra}" for extra in AWD_EXTRAS)),
        base="awd",
    ),
    Technique(
        "fraternal dropout",
        "Zolna et al. 2018",
        "`FraternalLoss`",
        ("training/test_fraternal.py",),
        ("fraternal 0.1", "fraternal 0.15", "fraternal 0.3"),
        base=_WEIGHT,
    ),
    Technique(
        "curriculum dropout",
        "Morerio et al. 2017",
        "`CurriculumSchedule`",
        ("training/test_curriculum.py",),
        ("weight_dropout 0.5, curriculum",),
        base=_WEIGHT,
    ),
    # Those around them.
    Technique(
        "annealed dropout",
        "Rennie et al. 2014",
        '`CurriculumSchedule(curve="annealed")`',
        ("training/test_curriculum.py",),
        ("weight_dropout 0.5, annealed",),
        base=_WEIGHT,
    ),
    Technique(
        "Pi model; expectation-linear dropout; R-Drop",
        "Laine & Aila 2017; Ma et al. 2017; Liang et al. 2021",
        "`FraternalLoss(variant=)`",
        ("training/test_fraternal.py",),
        ("pi 0.15", "eld 0.25", "rdrop 1"),
        base=_WEIGHT,
    ),
    Technique(
        "word dropout",
        "Iyyer et al. 2015; Dai & Le 2015",
        "`WordDropout`",
        ("training/test_words.py",),
        ("word_dropout 0.1", "word_dropout 0.25"),
    ),
    Technique(
        "data noising: blank, unigram",
        "Xie et al. 2017; Bowman et al. 2016",
        "`DataNoising`",
        ("training/test_words.py",),
        ("data_noising 0.1", "data_noising 0.25"),
    ),
    Technique(
        "data noising: bigram Kneser-Ney", "Xie et al. 2017", "`KneserNeyNoising`", ("training/test_kneser_ney.py",)
    ),
    Technique(
        "Gaussian dropout", "Srivastava et al. 2014", '`LockedDropout(noise="gaussian")`', ("masks/test_noise.py",)
    ),
    Technique(
        "Noisin: noise on h, multiplied or added",
        "Dieng et al. 2018",
        '`HiddenDropout(per="step", noise="gaussian")`, `HiddenDropout(per="step", noise="additive")`',
        ("masks/test_noise.py",),
    ),
    Technique(
        "variational dropout of weights, with its KL",
        "Kingma et al. 2015; Molchanov et al. 2017",
        '`WeightDropout(noise="gaussian")`, `gaussian_dropout_kl`',
        ("masks/test_noise.py", "training/test_learned_rates.py"),
    ),
    Technique("weight noise", "Graves 2011", '`WeightDropout(noise="additive")`', ("masks/test_noise.py",)),
    Technique(
        "Bayes by backprop of recurrent weights",
        "Blundell et al. 2015; Fortunato et al. 2017",
        "`BayesByBackprop`",
        ("training/test_bayes.py",),
    ),
    Technique(
        "learned rates: concrete dropout", "Gal et al. 2017", "`ConcreteDropout`", ("training/test_learned_rates.py",)
    ),
    Technique(
        "learned rates: hypergradients of the validation loss",
        "Luketina et al. 2016",
        "`HypergradientSchedule`",
        ("training/test_learned_rates.py",),
    ),
    Technique("h-detach", "Arpit et al. 2018", "`h_detach`", ("training/test_h_detach.py",)),
    Technique(
        "one step of any of these",
        "each of them",
        "`frd.LSTMCell`, `frd.GRUCell`, `frd.RNNCell`, `convert(cells=True)`",
        ("surface/test_cell_modules.py",),
    ),
)
