"""Put a trained model on the Hugging Face hub.

Checks the model's folder, shows what would be uploaded, and uploads it with `push.upload=true` alone. `push.license`
writes the licence into the model card, which must name one before it is uploaded.
"""

from __future__ import annotations

from revision.schema import Config


def run(config: Config) -> None:
    """Shows, and with `push.upload` uploads, the model that `push.model` names."""
    from rich import get_console
    from rich.table import Table

    from revision import model_card, publishing
    from revision.progress import say
    from revision.runs import rundir
    from revision.stages import starting

    settings = config.push
    folder = starting.model_folder(config, settings.model, wanted_by="push")
    files = publishing.check_folder(folder)
    card = folder / model_card.CARD
    if settings.license is not None and settings.license != model_card.licence_of(folder):
        rundir.write_text(card, model_card.with_licence(card.read_text(encoding="utf-8"), settings.license))
    licence = model_card.licence_of(folder) or "none yet: choose one with push.license=..."
    table = Table("file", "bytes", title=f"{folder} -> {settings.repo or 'push.repo=owner/name'}")
    for name, size in files:
        table.add_row(name, f"{size:,}")
    get_console().print(table)
    say(f"{sum(size for _, size in files):,} bytes in {len(files)} files; licence: {licence}")
    if not settings.upload:
        say("nothing was uploaded; push.upload=true does it")
        return
    if settings.repo is None:
        raise ValueError("push.repo is null, so there is nowhere to upload to; set it to owner/name")
    message = f"{config.name}: {settings.model}"
    address = publishing.upload(folder, settings.repo, private=settings.private, message=message)
    say(f"uploaded to {address}")
