"""What regularises a recurrent model outside its layers: one technique a file.

``docs/training.md`` lists them with their sources.
"""

from .activations import activation_regularization, temporal_activation_regularization
from .awd_lstm import AWDLSTM, AWDLSTMClassifier, AWDLSTMEncoder
from .bayes import BayesByBackprop
from .bptt import bptt_learning_rate, random_bptt_length, random_bptt_slices
from .concrete import ConcreteDropout, gaussian_dropout_kl
from .curriculum import CurriculumSchedule
from .embedding_dropout import EmbeddingDropout
from .fast_dropout import dropconnect_inference, fast_dropout_lstm, fast_dropout_rnn
from .fastai import load_fastai
from .fraternal import Fraternal, FraternalLoss
from .h_detach import h_detach
from .hypergradient import HypergradientSchedule
from .kneser_ney import KneserNeyNoising
from .mc_predict import mc_predict
from .ntasgd import NTASGD
from .output_dropout import OutputDropout
from .words import DataNoising, WordDropout

__all__ = [
    "AWDLSTM",
    "AWDLSTMClassifier",
    "AWDLSTMEncoder",
    "BayesByBackprop",
    "NTASGD",
    "ConcreteDropout",
    "CurriculumSchedule",
    "DataNoising",
    "EmbeddingDropout",
    "Fraternal",
    "FraternalLoss",
    "HypergradientSchedule",
    "KneserNeyNoising",
    "OutputDropout",
    "WordDropout",
    "activation_regularization",
    "bptt_learning_rate",
    "dropconnect_inference",
    "fast_dropout_lstm",
    "fast_dropout_rnn",
    "gaussian_dropout_kl",
    "h_detach",
    "load_fastai",
    "mc_predict",
    "random_bptt_length",
    "random_bptt_slices",
    "temporal_activation_regularization",
]
