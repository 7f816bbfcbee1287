"""Train a dual encoder on pairs of pictures and texts: its heads behind locked towers, or all of it.

Writes an ordinary open_clip folder, which `embed` reads like any other encoder, and the fixed-frame trace of the
modality gap of the validation pairs with its figure (ReVision v3, Fig. 1; docs/geometry-frame.md).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.schema import Config, ContrastPart

if TYPE_CHECKING:
    import numpy as np

    from revision.contrastive import ContrastSettings, PairInputs, Snapshot, TowerInputs, TrainedPart
    from revision.encoders import OpenClipEncoder
    from revision.records import Pair


def run(config: Config) -> None:
    """Trains `contrast.train` of a model on `data.contrast_train`."""
    from revision.contrastive import heads_of, train, training_batches, whole
    from revision.encoders import OpenClipEncoder, load_encoder
    from revision.geometry.frame_plot import save_frame_figure
    from revision.geometry.frame_trace import TRACE, FrameTrace, read_trace
    from revision.progress import progress_bar, say
    from revision.records import read_pairs
    from revision.runs import rundir

    train_file, validation_file = _pair_files(config)
    init = _initial_model(config)
    encoder = load_encoder(
        kind="open_clip", model=f"local-dir:{init}", pretrained=None, dtype="float32",
        device=config.contrast.device, name=config.encoder.name,
    )  # fmt: skip
    assert isinstance(encoder, OpenClipEncoder)
    part = heads_of(encoder.model) if config.contrast.train is ContrastPart.heads else whole(encoder.model)
    for line in _what_trains(part, config.contrast.learn_logit_scale):
        say(line)
    started = time.monotonic()
    pairs = _inputs(config, encoder, part, list(read_pairs(train_file)), "training")
    validation = _inputs(config, encoder, part, list(read_pairs(validation_file)), "validation")
    probed, settings = _probed_batches(config, validation), _settings(config)
    batches = training_batches(pairs, settings)
    first = _frame_step(config, len(batches))
    folder = rundir.start(config, "contrast")  # nothing stands in the way any more
    frame = FrameTrace(folder / TRACE, batches=probed, energy=config.contrast.frame_energy)

    def observe(now: Snapshot) -> None:
        """Measures a snapshot in the frame, which the first one from `frame_step` on decides."""
        if now.step >= first:
            images, texts = now.images.cpu().numpy(), now.texts.cpu().numpy()
            rows = images[validation.image_of.numpy()], texts[validation.text_of.numpy()]
            frame.record(now.step, *rows, now.logit_scale)

    with (folder / "log.jsonl").open("w") as log, progress_bar("steps") as progress:
        task = progress.add_task(part.name, total=None)

        def report(measured: dict[str, float]) -> None:
            """A line in the log, at once, and one in the terminal."""
            log.write(json.dumps(measured) + "\n")
            log.flush()
            say(f"step {measured['step']}: {_summary(measured)}")

        metrics = train(
            part, pairs=pairs, validation=validation, settings=settings, report=report,
            advance=lambda done, total: progress.update(task, completed=done, total=total),
            observe=observe, batches=batches,
        )  # fmt: skip
    if metrics["left_out"] > 0.01:  # a last batch that is not full is nothing to speak of
        say(f"{metrics['left_out']:.0%} of the pairs sat out: too many share a picture or a text to meet in a batch")
    trace = read_trace(folder / TRACE)
    save_frame_figure(trace, folder / "frame.png")
    output = _save(config, folder, init, part)
    facts: dict[str, Any] = {
        "training_pairs": len(pairs), "validation_pairs": len(validation),
        "trained_parameters": sum(value.numel() for value in part.parameters.values()),
        "seconds": round(time.monotonic() - started, 1), **metrics, "frame": trace[-1],
    }  # fmt: skip
    rundir.write_json(folder / "metrics.json", facts)
    say(f"{part.name}: {_summary(metrics)}; encoder saved to {output}; fixed frame drawn in {folder / 'frame.png'}")
    rundir.finish(config, "contrast", output=str(output), **facts)


def _pair_files(config: Config) -> tuple[Path, Path]:
    data, wanted = config.data, config.contrast
    if wanted.init is None and not wanted.architecture:
        raise ValueError(
            "contrast.init is null, but `contrast` needs it; set it, or contrast.architecture with train=all"
        )
    for field, value in (("contrast_train", data.contrast_train), ("contrast_validation", data.contrast_validation)):
        if value is None:
            raise ValueError(
                f"data.{field} is null, but `contrast` needs it; set it, or choose a data group that has it"
            )
    return Path(str(data.contrast_train)), Path(str(data.contrast_validation))


def _initial_model(config: Config) -> Path:
    """The open_clip folder that training starts from: `contrast.init`, or a new one with random weights."""
    import torch

    from revision.encoders.openclip_folder import build_open_clip_model, save_open_clip_folder
    from revision.runs import rundir

    wanted = config.contrast
    if wanted.init is not None:
        return Path(wanted.init)
    folder = rundir.folder(config, "contrast") / "initial"
    try:
        model_cfg = dict(wanted.architecture["model_cfg"])
        preprocess_cfg = dict(wanted.architecture["preprocess_cfg"])
        text_tower = model_cfg["text_cfg"].get("hf_model_name")
        model_cfg.pop("custom_text", None)
        torch.manual_seed(config.seed)
        model = build_open_clip_model(model_cfg, text_tower=None if text_tower is None else Path(text_tower))
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"contrast.architecture cannot be built ({type(error).__name__}: {reason}); give it model_cfg and "
            "preprocess_cfg as an open_clip_config.json has them"
        ) from error
    save_open_clip_folder(
        folder,
        model_cfg={**model_cfg, "custom_text": True},  # without it open_clip would read the two towers as one class
        preprocess_cfg=preprocess_cfg,
        state_dict=model.state_dict(),
        text_tower=None if text_tower is None else Path(text_tower),
    )
    return folder


def _save(config: Config, folder: Path, init: Path, part: TrainedPart) -> Path:
    """Writes the open_clip folder, and the heads alone where they are wanted."""
    from revision.encoders.openclip_folder import read_config, save_heads, save_open_clip_folder

    output = folder / "encoder" if config.contrast.output is None else Path(config.contrast.output)
    model_cfg, preprocess_cfg = read_config(init)
    save_open_clip_folder(
        output, model_cfg=model_cfg, preprocess_cfg=preprocess_cfg, state_dict=part.model.state_dict(),
        text_tower=init if "hf_model_name" in model_cfg["text_cfg"] else None,
    )  # fmt: skip
    if config.contrast.heads is not None:
        save_heads(part.model, Path(config.contrast.heads))
    return output


def _settings(config: Config) -> ContrastSettings:
    from revision.contrastive import ContrastSettings

    wanted = config.contrast
    return ContrastSettings(
        epochs=wanted.epochs, batch_size=wanted.batch_size, learning_rate=wanted.learning_rate,
        weight_decay=wanted.weight_decay, warmup=wanted.warmup, logit_scale=wanted.logit_scale,
        learn_logit_scale=wanted.learn_logit_scale, probe_interval=wanted.probe_interval, seed=config.seed,
    )  # fmt: skip


def _what_trains(part: TrainedPart, learn_scale: bool) -> list[str]:
    trained = sum(value.numel() for value in part.parameters.values())
    locked = sum(value.numel() for name, value in part.model.named_parameters() if name in part.locked)
    names = f" ({', '.join(part.parameters)})" if len(part.parameters) < 10 else ""
    return [
        f"trains: {trained:,} parameters of {part.name}{names}",
        f"locked: {locked:,} parameters of the towers",
        f"temperature: {'learned' if learn_scale else 'fixed'}",
    ]


def _summary(measured: dict[str, float]) -> str:
    return (
        f"image to text R@1 {measured['image_to_text_r1']:.3f} R@5 {measured['image_to_text_r5']:.3f}, "
        f"text to image R@1 {measured['text_to_image_r1']:.3f} R@5 {measured['text_to_image_r5']:.3f}, "
        f"gap {measured['gap']:.3f}, traces {measured['trace_image']:.3f} and {measured['trace_text']:.3f}"
    )


def _probed_batches(config: Config, validation: PairInputs) -> list[np.ndarray]:
    """Batches of validation pairs, whose gradients the frame looks at."""
    import torch

    from revision.contrastive import distinct_batches

    generator = torch.Generator().manual_seed(config.seed)
    batches = [batch.numpy() for batch in distinct_batches(validation, config.contrast.batch_size, generator)]
    if len(batches[0]) < 2:
        raise ValueError("validation pairs: contrast needs at least two that differ in picture and text")
    return batches


def _frame_step(config: Config, steps: int) -> int:
    """The step that the frame is taken at: the end of warm-up, unless another is asked for."""
    from revision.contrastive import warmup_steps

    wanted = config.contrast
    first = warmup_steps(steps, wanted.warmup) if wanted.frame_step is None else wanted.frame_step
    if first > steps:
        raise ValueError(f"contrast.frame_step = {first}: must be at most the {steps} steps of this training")
    return first


def _inputs(
    config: Config, encoder: OpenClipEncoder, part: TrainedPart, pairs: Sequence[Pair], what: str
) -> PairInputs:
    """What the part that trains receives for every distinct picture and text of the pairs."""
    from revision.contrastive import PairInputs, distinct, tower_features, whole_inputs
    from revision.decoding import decoding_workers
    from revision.progress import progress_bar, say

    if not pairs:
        raise ValueError(f"{what} pairs: the file holds no pairs; contrast needs some")
    for pair in pairs:
        if not pair.text.strip():
            raise ValueError(f"{what} pairs: the text of pair {pair.id!r} is empty; mend it or leave the pair out")
    names, image_of = distinct(str(pair.path) for pair in pairs)
    texts, text_of = distinct(pair.text for pair in pairs)
    files = [Path(name) for name in names]

    def compute() -> TowerInputs:
        """What trains reads these: features of locked towers, or pixels and token ids."""
        with progress_bar("items") as progress:
            task = progress.add_task(f"inputs, {what} pairs", total=len(files) + len(texts))
            shared: dict[str, Any] = {
                "files": files, "texts": texts, "batch_size": config.encoder.batch_size,
                "workers": decoding_workers(config.embed.workers, gpu=encoder.device.type != "cpu"),
                "advance": lambda done: progress.advance(task, done),
            }  # fmt: skip
            try:
                if config.contrast.train is ContrastPart.all:
                    return whole_inputs(encoder, **shared)
                return tower_features(encoder, part.model, **shared)
            except ValueError as error:
                raise ValueError(f"{what} pairs: {error}") from error

    if config.contrast.train is ContrastPart.all:
        found = compute()
    else:
        found = _kept(config, encoder, part, files, texts, what, compute)
    if found.cut:
        say(f"{what} pairs: {found.cut:,} of {len(texts):,} texts are longer than the encoder reads, and are cut")
    return PairInputs(found.images, found.texts, image_of, text_of)


def _kept(
    config: Config,
    encoder: OpenClipEncoder,
    part: TrainedPart,
    files: Sequence[Path],
    texts: Sequence[str],
    what: str,
    compute: Callable[[], TowerInputs],
) -> TowerInputs:
    """Features of locked towers, from disk where they are known: they do not depend on the settings of the heads."""
    import torch

    from revision.contrastive import load_or_compute, pictures_fingerprint, towers_sha256
    from revision.progress import say

    towers = {
        **{key: value for key, value in encoder.describe().items() if key not in ("name", "weights")},
        "towers": towers_sha256(part.model),
        # The order of summation, and with it the last bit, depends on these.
        "batch_size": config.encoder.batch_size, "device": encoder.device.type, "torch": str(torch.__version__),
    }  # fmt: skip
    file = Path(config.data.stores) / config.encoder.name / "contrast-features" / f"{what}.safetensors"
    features, known = load_or_compute(file, pictures_fingerprint(files, texts, towers), encoder.device, compute)
    origin = "read from" if known else "computed and kept in"
    say(f"{what} pairs: features of {len(files):,} pictures and {len(texts):,} texts, {origin} {file}")
    return features
