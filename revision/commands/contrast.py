"""Train the heads of a dual encoder whose towers stay locked, on pairs of pictures and texts.

Writes an ordinary open_clip folder, which `embed` reads like any other encoder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.schema import Config

if TYPE_CHECKING:
    import torch
    from open_clip import CustomTextCLIP

    from revision.contrastive import HeadTraining, PairFeatures
    from revision.encoders import OpenClipEncoder
    from revision.records import Pair


def run(config: Config) -> None:
    """Trains the heads of `contrast.init` on `data.contrast_train`."""
    from revision import rundir
    from revision.contrastive import lock_towers, train_heads
    from revision.encoders import OpenClipEncoder, load_encoder
    from revision.openclip_folder import head_parameters, read_config, save_heads, save_open_clip_folder
    from revision.progress import progress_bar, say
    from revision.records import read_pairs

    init, train_file, validation_file = _inputs(config)
    folder = rundir.start(config, "contrast")
    encoder = load_encoder(
        kind=config.encoder.kind.value, model=f"local-dir:{init}", pretrained=None, dtype="float32",
        device=config.contrast.device, name=config.encoder.name,
    )  # fmt: skip
    assert isinstance(encoder, OpenClipEncoder)
    model = lock_towers(encoder.model)
    heads = head_parameters(model)
    for line in _what_trains(model, heads, config.contrast.learn_logit_scale):
        say(line)
    started = time.monotonic()
    train = _features(config, encoder, model, list(read_pairs(train_file)), "training pairs")
    validation = _features(config, encoder, model, list(read_pairs(validation_file)), "validation pairs")
    with (folder / "log.jsonl").open("w") as log, progress_bar("steps") as progress:
        task = progress.add_task("heads", total=None)

        def report(measured: dict[str, float]) -> None:
            log.write(json.dumps(measured) + "\n")
            log.flush()
            say(f"step {measured['step']}: {_summary(measured)}")

        metrics = train_heads(
            model, train=train, validation=validation, settings=_settings(config), report=report,
            advance=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    output = folder / "encoder" if config.contrast.output is None else Path(config.contrast.output)
    model_cfg, preprocess_cfg = read_config(init)
    save_open_clip_folder(
        output, model_cfg=model_cfg, preprocess_cfg=preprocess_cfg, state_dict=model.state_dict(), text_tower=init
    )
    if config.contrast.heads is not None:
        save_heads(model, Path(config.contrast.heads))
    facts: dict[str, Any] = {
        "training_pairs": len(train), "validation_pairs": len(validation),
        "trained_parameters": sum(value.numel() for value in heads.values()),
        "seconds": round(time.monotonic() - started, 1), **metrics,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(facts, indent=1) + "\n")
    say(f"heads: {_summary(metrics)}; encoder saved to {output}")
    rundir.finish(config, "contrast", output=str(output), **facts)


def _inputs(config: Config) -> tuple[Path, Path, Path]:
    fields = {
        "contrast.init": config.contrast.init,
        "data.contrast_train": config.data.contrast_train,
        "data.contrast_validation": config.data.contrast_validation,
    }
    for field, value in fields.items():
        if value is None:
            raise ValueError(f"{field} is null, but `contrast` needs it; set it, or choose a data group that has it")
    init, train, validation = (Path(str(value)) for value in fields.values())
    return init, train, validation


def _settings(config: Config) -> HeadTraining:
    from revision.contrastive import HeadTraining

    wanted = config.contrast
    return HeadTraining(
        epochs=wanted.epochs, batch_size=wanted.batch_size, learning_rate=wanted.learning_rate,
        weight_decay=wanted.weight_decay, warmup=wanted.warmup, logit_scale=wanted.logit_scale,
        learn_logit_scale=wanted.learn_logit_scale, probe_interval=wanted.probe_interval, seed=config.seed,
    )  # fmt: skip


def _what_trains(model: torch.nn.Module, heads: dict[str, torch.nn.Parameter], learn_scale: bool) -> list[str]:
    trained = sum(value.numel() for value in heads.values())
    locked = sum(value.numel() for value in model.parameters()) - trained - 1
    return [
        f"trains: {trained:,} parameters of the heads ({', '.join(heads)})",
        f"locked: {locked:,} parameters of the towers",
        f"temperature: {'learned' if learn_scale else 'fixed'}",
    ]


def _summary(measured: dict[str, float]) -> str:
    return (
        f"image to text R@1 {measured['image_to_text_r1']:.3f} R@5 {measured['image_to_text_r5']:.3f}, "
        f"text to image R@1 {measured['text_to_image_r1']:.3f} R@5 {measured['text_to_image_r5']:.3f}, "
        f"gap {measured['gap']:.3f}, traces {measured['trace_image']:.3f} and {measured['trace_text']:.3f}"
    )


def _features(
    config: Config, encoder: OpenClipEncoder, model: CustomTextCLIP, pairs: Sequence[Pair], what: str
) -> PairFeatures:
    """The locked towers' features of every distinct picture and text of the pairs."""
    import torch

    from revision.contrastive import PairFeatures, distinct, head_inputs, stack_features
    from revision.pictures import read_pixel_batches
    from revision.progress import progress_bar

    size = config.encoder.batch_size
    if not pairs:
        raise ValueError(f"{what}: the file holds no pairs; contrast needs some")
    for pair in pairs:
        if not pair.text.strip():
            raise ValueError(f"{what}: the text of pair {pair.id!r} is empty; mend it or leave the pair out")
    files, image_of = distinct(str(pair.path) for pair in pairs)
    texts, text_of = distinct(pair.text for pair in pairs)
    batches = [[Path(file) for file in files[start : start + size]] for start in range(0, len(files), size)]
    images: list[torch.Tensor] = []
    text_batches = []
    with progress_bar("items") as progress:
        task = progress.add_task(f"towers, {what}", total=len(files) + len(texts))
        for pixels in read_pixel_batches(batches, encoder.preprocess, workers=config.embed.workers):
            for problem in filter(None, pixels.problems):
                raise ValueError(f"{what}: {problem}; mend the file or leave its pairs out")
            images.append(head_inputs(model.visual.head, model.encode_image, pixels.tensor.to(encoder.device)))
            progress.advance(task, len(pixels.tensor))
        for positions, ids in encoder.token_batches(texts, size):
            text_batches.append((positions, head_inputs(model.text.proj, model.encode_text, ids)))
            progress.advance(task, len(positions))
    return PairFeatures(torch.cat(images), stack_features(text_batches), image_of, text_of)
