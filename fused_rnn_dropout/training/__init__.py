"""What regularises a recurrent model outside its layers: one technique a file.

``docs/training.md`` lists them with their sources.
"""

from .activations import activation_regularization, temporal_activation_regularization
from .bptt import bptt_learning_rate, random_bptt_length, random_bptt_slices
from .curriculum import CurriculumSchedule
from .embedding_dropout import EmbeddingDropout
from .fraternal import Fraternal, FraternalLoss
from .mc_predict import mc_predict
from .ntasgd import NTASGD

__all__ = [
    "NTASGD",
    "CurriculumSchedule",
    "EmbeddingDropout",
    "Fraternal",
    "FraternalLoss",
    "activation_regularization",
    "bptt_learning_rate",
    "mc_predict",
    "random_bptt_length",
    "random_bptt_slices",
    "temporal_activation_regularization",
]
