"""What regularises a recurrent model outside its layers: one technique a file.

``docs/training.md`` lists them with their sources.
"""

from .activations import activation_regularization, temporal_activation_regularization
from .awd_lstm import AWDLSTM, AWDLSTMClassifier, AWDLSTMEncoder
from .bptt import bptt_learning_rate, random_bptt_length, random_bptt_slices
from .curriculum import CurriculumSchedule
from .embedding_dropout import EmbeddingDropout
from .fastai import load_fastai
from .fraternal import Fraternal, FraternalLoss
from .mc_predict import mc_predict
from .ntasgd import NTASGD
from .output_dropout import OutputDropout

__all__ = [
    "AWDLSTM",
    "AWDLSTMClassifier",
    "AWDLSTMEncoder",
    "NTASGD",
    "CurriculumSchedule",
    "EmbeddingDropout",
    "Fraternal",
    "FraternalLoss",
    "OutputDropout",
    "activation_regularization",
    "bptt_learning_rate",
    "load_fastai",
    "mc_predict",
    "random_bptt_length",
    "random_bptt_slices",
    "temporal_activation_regularization",
]
