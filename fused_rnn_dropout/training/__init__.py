"""What regularises a recurrent model outside its layers: one technique a file.

``docs/training.md`` lists them with their sources.
"""

from .activations import activation_regularization, temporal_activation_regularization
from .bptt import bptt_learning_rate, random_bptt_length, random_bptt_slices
from .curriculum import CurriculumSchedule
from .embedding_dropout import EmbeddingDropout
from .ntasgd import NTASGD

__all__ = [
    "NTASGD",
    "CurriculumSchedule",
    "EmbeddingDropout",
    "activation_regularization",
    "bptt_learning_rate",
    "random_bptt_length",
    "random_bptt_slices",
    "temporal_activation_regularization",
]
