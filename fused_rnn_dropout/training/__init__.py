"""What regularises a recurrent model outside its layers: one technique a file.

``docs/training.md`` lists them with their sources.
"""

from .embedding_dropout import EmbeddingDropout

__all__ = ["EmbeddingDropout"]
