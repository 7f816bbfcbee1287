"""The stand-in whose `evaluate` leaves a score: -(learning rate - 0.01)^2, 1 less for an alignment other than realign.

In place of Optuna, where that is not installed, tests use `proposals` of their own; here nothing of it is needed.
"""

from __future__ import annotations

import json
import sys

from stand_in import main

from revision.runs import rundir
from revision.schema import Config


def leave_score(config: Config) -> None:
    """Writes `evaluate/pretrain/scores.json` of one job."""
    folder = rundir.folder(config, "evaluate") / "pretrain"
    folder.mkdir(parents=True, exist_ok=True)
    score = -((config.pretrain.trainer.get("learning_rate", 0.0) - 0.01) ** 2)
    score -= float(config.alignment.method != "realign")
    content = {"pictures": {"known": {"margin": {"value": score, "low": score, "high": score, "n": 1}}}}
    (folder / "scores.json").write_text(json.dumps(content))


if __name__ == "__main__":
    sys.exit(main({"evaluate": leave_score}))
