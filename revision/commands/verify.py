"""Hold checkpoints, models, stores and alignments against their checksums, and say what is broken.

`revision verify FOLDER` (or `verify.path=FOLDER`) looks at one folder or at all below it; without one, at everything
that the run has made and the stores and models that it reads. Ends with exit code 1 when something is broken.
"""

from __future__ import annotations

from pathlib import Path

from revision.schema import MODEL_STEPS, Config


def run(config: Config) -> None:
    """Print one line for each thing that was looked at.

    Raises:
        ValueError: something is broken, or there is nothing to look at.
    """
    from revision.progress import say
    from revision.verification import verify

    places = _places(config)
    findings = []
    for place in places:
        for one in verify(place):
            findings.append(one)
            state = "whole" if one.fault is None else f"BROKEN: {one.fault}"
            say(f"{one.kind:>10}  {one.path}: {one.remark or state}")
    if not findings:
        looked = ", ".join(map(str, places)) or str(Path(config.runs) / config.name)
        raise ValueError(f"there is no checkpoint, model, store or alignment in {looked}; set verify.path to one")
    broken = [one for one in findings if one.fault is not None]
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(findings)} are broken, the first is the {broken[0].kind} {broken[0].path}: restore "
            "them, or delete them and run the command that makes them again"
        )
    say(f"all {len(findings)} are whole")


def _places(config: Config) -> list[Path]:
    """The folder that is asked for, or else those of the run and of what it reads, as far as they are there."""
    if config.verify.path is not None:
        return [Path(config.verify.path)]
    run = Path(config.runs) / config.name
    stores = Path(config.data.stores) / config.encoder.name
    sources = [name for name, source in config.data.sources.items() if source.embeddings is None]
    named = (config.pretrain.init, config.instruct.init, *config.evaluate.models)
    models = dict.fromkeys(Path(model) for model in named if model is not None and model not in MODEL_STEPS)
    return [place for place in (run, *(stores / name for name in sources), *models) if place.is_dir()]
