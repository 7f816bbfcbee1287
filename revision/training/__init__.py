"""Both training stages on `transformers.Trainer`: what trains, checks before and after, and the curve.

1. `build_arguments` turns the open `trainer` mapping into `TrainingArguments`, before any model or data is loaded.
2. `train` freezes all but the named parts, puts each into its precision, runs the Trainer, and then asserts that what
   should move has moved and nothing else has.
3. `conclude` cleans up, after the main process has saved the model.
"""

from revision.training.arguments import build_arguments
from revision.training.parts import PARTS, checksums, select_parts
from revision.training.ranks import alone
from revision.training.stage import conclude, train

__all__ = ["PARTS", "alone", "build_arguments", "checksums", "conclude", "select_parts", "train"]
