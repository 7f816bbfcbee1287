"""What `embed` takes beside the encoder alone, on the nano pictures and texts.

python scripts/bench/embed.py [--quick] [--records 2000] [--workers 0 1 ...]   needs data/nano, as `make run` leaves it

The command itself runs, from the records to a temporary store, and counts its records a second; loading the encoder is
no part of it, starting the decoding processes is. Beside it stand the forward passes alone, over the same batches that
are decoded and tokenized already: what no way of reading can go beyond. The ratio of the two is the share of the time
that the encoder computes. Beside a GPU the processes that are there by default have to keep it busy; on a CPU decoding
and encoding share the cores, and the limit is what decoding may take of them. --quick takes 128 records.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from measuring import conclude, report, seconds

from revision.assembly import load_encoder
from revision.commands import embed
from revision.decoding import decoding_workers, read_pixel_batches
from revision.encoders import OpenClipEncoder
from revision.records import read_images, read_texts
from revision.schema import Config, DataConfig, EmbedConfig, EncoderConfig, Modality, SourceConfig

# Share of the time that the encoder has to compute; for pictures beside a GPU and on a CPU.
TEXTS, ON_GPU, ON_CPU = 0.8, 0.8, 0.5


def config_of(data: Path, folder: Path, records: int) -> Config:
    """The nano corpus, of which the first `records` pictures and texts are written to `folder`, where all else goes."""
    sources = {}
    for name, kind in (("statistics", Modality.image), ("texts", Modality.text)):
        with (data / f"{name}.jsonl").open(encoding="utf-8") as file:
            (folder / f"{name}.jsonl").write_text("".join(islice(file, records)), encoding="utf-8")
        root = str(data.resolve()) if kind is Modality.image else None
        sources[name] = SourceConfig(kind, str(folder / f"{name}.jsonl"), image_root=root)
    return Config(
        name="speed", runs=str(folder / "runs"),
        data=DataConfig(name="nano", folder=str(data), stores=str(folder / "stores"), sources=sources),
        encoder=EncoderConfig(name="nano", model=f"local-dir:{data / 'assets' / 'encoder'}"),
    )  # fmt: skip


def embedded(config: Config, source: str, workers: int | None) -> float:
    """Records a second of the command, into a store of its own."""
    config.embed = EmbedConfig(sources=[source], workers=workers)
    config.data.stores = f"{config.runs}/{source}-{workers}"
    embed.run(config)
    finished = json.loads((Path(config.runs) / config.name / "embed" / "finished.json").read_text(encoding="utf-8"))
    return float(finished["facts"]["stores"][source]["records_per_second"])


@torch.inference_mode()
def tower_alone(encoder: OpenClipEncoder, config: Config, source: str) -> float:
    """Records a second of the forward passes, over the batches that the command makes."""
    file, size = str(config.data.sources[source].records), config.encoder.batch_size
    if source == "texts":
        texts = [one.text for one in read_texts(file)]
        shards = [texts[at : at + config.embed.shard_size] for at in range(0, len(texts), config.embed.shard_size)]
        tokens = [batch for shard in shards for _, batch in encoder.token_batches(shard, size)]
        return len(texts) / seconds(lambda: [encoder.text_features(batch).cpu() for batch in tokens])
    root = Path(str(config.data.sources[source].image_root))
    files = [one.picture for one in read_images(file, root)]
    batches = [files[at : at + size] for at in range(0, len(files), size)]
    decoded = [found.tensor for found in read_pixel_batches(batches, encoder.preprocess, workers=0)]
    return len(files) / seconds(lambda: [encoder.encode_pixels(batch) for batch in decoded])


def measure(config: Config, counts: Sequence[int]) -> None:
    """Both sides of the corpus, pictures with each number of decoding processes."""
    encoder = load_encoder(config, "auto")
    assert isinstance(encoder, OpenClipEncoder)
    gpu = encoder.device.type != "cpu"
    usual = decoding_workers(None, gpu=gpu)
    embedded(config, "texts", 0)  # warms up: kernels are made, and files come into the page cache
    most = tower_alone(encoder, config, "texts")
    rate = embedded(config, "texts", None)
    report("texts: forward passes alone", most, "texts/s")
    report("texts: embed", rate, "texts/s")
    report("texts: share of the time that the encoder computes", rate / most, "", least=TEXTS)
    most = tower_alone(encoder, config, "statistics")
    report("pictures: forward passes alone", most, "images/s")
    for workers in sorted({*counts, usual}):
        rate = embedded(config, "statistics", workers)
        report(f"pictures: embed, {workers} decoding processes", rate, "images/s")
        least = (ON_GPU if gpu else ON_CPU) if workers == usual else None
        report("pictures: share of the time that the encoder computes", rate / most, "", least=least)


def main() -> None:
    """Embed the beginning of the corpus in several ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/nano"))
    parser.add_argument("--quick", action="store_true", help="128 records")
    parser.add_argument("--records", type=int, default=2000, help="of each side")
    cores = os.cpu_count() or 1
    counts = [count for count in (0, 1, 2, 4, 8, 16) if count < max(cores, 2)]
    parser.add_argument("--workers", type=int, nargs="+", default=counts, help="decoding processes to try")
    options = parser.parse_args()
    if not (options.data / "assets" / "encoder").is_dir():
        sys.exit(f"{options.data} has no assets/encoder: `make run` makes it, or name the corpus with --data")
    with tempfile.TemporaryDirectory() as name:
        measure(config_of(options.data, Path(name), 128 if options.quick else options.records), options.workers)


if __name__ == "__main__":
    main()
    conclude()
