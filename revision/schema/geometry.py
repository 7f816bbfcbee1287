"""The map from texts to images, and what is measured of the gap."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from revision.schema.choices import BadRows


@dataclass
class AlignmentConfig:
    """`align`: the map from text to image distribution.

    A method takes the fields that it knows (named behind each; docs/alignment.md) and leaves the others alone. Null is
    the method's own default.
    """

    method: str = "realign"  # a file of revision/alignment/methods, or a method that another package adds
    centroid_steps: int = 1  # realign, blockwise, quantile, gaussian_ot, shrunk_ot, residual_noise: times that the
    # centroid is corrected; 1 is the paper, 0 leaves the step out
    until: float | None = None  # methods with centroid_steps, which it overrides: correct until the centroid gap is
    # below this
    noise_std: float = 0.1264911064  # c3: sqrt(0.016) a coordinate, as in the repository of 2401.08567
    anchor: bool | None = None  # realign: false leaves the first step out
    trace: bool | None = None  # realign: false leaves the second step out
    rank: int | None = None  # blockwise, quantile (even), shrunk_ot: dimension of the leading subspace; null: by energy
    energy: float | None = None  # blockwise, quantile, shrunk_ot: share of the trace in the leading subspace; 0.9
    ridge: float | None = None  # blockwise, quantile, gaussian_ot, shrunk_ot: share of mean variance added; 1e-3
    shrinkage: float | None = None  # shrunk_ot: from 0 (Gaussian transport) to 1 (ReAlign); null: estimated
    noise_scale: float | None = None  # residual_noise: factor on the noise of derived covariance; 1
    jitter: float | None = None  # diagonal: standard deviation of noise a coordinate; 0
    options: dict[str, Any] = field(default_factory=dict)  # settings of a method that are no field here


@dataclass
class AlignConfig:
    """`align`: what it reads and writes besides the alignment; the map itself is set under `alignment`."""

    bad_rows: BadRows = BadRows.error  # rows without a direction (zero, NaN, infinite): error refuses them by name,
    # skip leaves them out of the fit and counts them
    export: str | None = None  # folder for the aligned text rows as .npy and parquet, in clip-retrieval's layout
    shard_size: int = 1_000_000  # rows a file of the export


@dataclass
class GapConfig:
    """`gap`: geometry before and after alignment."""

    sample: int = 20000  # rows a side that are measured, drawn with `seed`; the cost of cosines grows with its square
    neighbours: list[int] | None = None  # numbers of nearest neighbours; null: 10 and 20, fewer where rows are few
    compare: list[str] = field(default_factory=list)  # further alignments to fit here and put beside the run's own
    captions: str | None = None  # text source of the captions of data.pairs, under their ids; null: data.texts
    energy: float = 0.9  # share of the trace in the subspace U that pairs are split along; the paper states none
    sizes: list[int] = field(default_factory=list)  # rows a side to fit on, for the sample-size curve; []: no curve
    held_out: int = 2000  # rows a side that the sample-size curve measures on
    domains: list[str] = field(default_factory=list)  # two or more <text source>/<image source> to transfer between
    trace: str | None = None  # trace.jsonl of a `contrast`, or its folder: adds the fixed frame's figure to the report
    trials: int = 5  # repetitions of curve and transfer (ReVision v3: 5)
