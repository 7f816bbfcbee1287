"""The geometry report as tables, for the terminal and for the page; none of them holds what `report.json` does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        name: of the measure.
        meaning: what it says, in a few words.
        values: one a column; None where the measure has none.
    """

    name: str
    meaning: str
    values: list[float | None]


@dataclass(frozen=True)
class Table:
    """One table: its title, what was measured on what, names of its columns, its lines."""

    title: str
    note: str
    columns: list[str]
    lines: list[Line]


def tables(report: dict[str, Any]) -> Iterator[Table]:
    """The tables that a report has numbers for; `report` is what `revision gap` writes to `report.json`."""
    sample, texts = report["sample"], list(report["against_image"])
    note = (
        f"{sample['text']:,} of {sample['text_rows']:,} text rows and {sample['image']:,} of {sample['image_rows']:,} "
        f"image rows, drawn with seed {sample['seed']}."
    )
    if report["image_halves"]:
        note += (
            " Under image, measures that compare have one random half of the images against the other: as close as two "
            "samples of half the size come."
        )
    if report["moved_images"]:
        note += (
            f" {', '.join(report['moved_images'])} maps images too: its column compares with the mapped images, while "
            f"figures of clouds show the images as they are."
        )
    yield Table("Clouds", note, [*texts, "image"], list(_cloud_lines(report)))
    if "pairs" in report:
        pairs, subspace = report["pairs"], report["pairs"]["subspace"]
        note = (
            f"{pairs['count']:,} of {pairs['records']:,} pairs, matched by {pairs['matched_by']}. Δ = image − text; U "
            f"is spanned by the {subspace['rank']} leading directions of both covariances together, with "
            f"{subspace['energy']:.0%} of their trace, V is the rest."
        )
        yield Table("Pairs", note, texts, list(_pair_lines(report)))
    if "sample_size" in report:
        yield _size_table(report["sample_size"])
    if "domain_transfer" in report:
        yield from _transfer_tables(report["domain_transfer"])


def _cloud_lines(report: dict[str, Any]) -> Iterator[Line]:
    against, clouds, texts = report["against_image"], report["clouds"], list(report["against_image"])
    halves = report["image_halves"] or {}

    def compared(field: str) -> list[float | None]:
        """A measure of each text cloud against the images, then of the images' halves."""
        return [*(against[name][field] for name in texts), halves.get(field)]

    def own(field: str) -> list[float | None]:
        """A measure of each cloud, the images last."""
        return [clouds[name][field] for name in [*texts, "image"]]

    gaps = [*(report["centroid_gap_all_rows"][name] for name in texts), None]
    floor = f"distance of the two means, G_μ; sampling alone gives about {report['centroid_gap_floor']:.2g}"
    densities = "pairwise-cosine densities against the images', in nats: 0 is equal, 0.693 apart"
    mixing = f"share of nearest neighbours of the other side; {report['perfect_mixing']:.3f} if both sides were one"
    yield Line("centroid gap, all rows", "as fitted, over the whole stores; no noise added", gaps)
    yield Line("centroid gap, sample", floor, compared("centroid_gap"))
    yield Line("trace", "trace of the covariance, E‖e − μ‖² = 1 − ‖μ‖²", own("trace"))
    yield Line("trace ratio", "image trace over text trace", compared("trace_ratio"))
    yield Line("covariance distance", "Frobenius norm of the difference, G_Σ", compared("covariance_distance"))
    yield Line(
        "… relative", "the same, over the norm of the image covariance", compared("covariance_distance_relative")
    )
    yield Line("Fréchet distance", "of Gaussians with the same moments, not squared", compared("frechet_distance"))
    yield Line("power-law exponent", "of the covariance spectrum", own("power_law_exponent"))
    yield Line("effective rank", "exp of the entropy of the spectrum", own("effective_rank"))
    yield Line("condition number", "largest over smallest eigenvalue", own("condition_number"))
    yield Line("cosine JS divergence", densities, compared("cosine_js_divergence"))

    def mixed(field: str, k: int | str) -> list[float | None]:
        """As `compared`, of a measure that depends on the number of neighbours."""
        return [*(against[name][field][k] for name in texts), halves.get(field, {}).get(k)]

    for k in against["text"]["knn_mixing"]:
        kept = [*(report["neighbours_kept"].get(name, {}).get(k) for name in texts), None]
        yield Line(f"kNN mixing, k = {k}", mixing, mixed("knn_mixing", k))
        yield Line("… of the texts", "the same, over the neighbours of texts alone", mixed("knn_mixing_of_text", k))
        yield Line("… of the images", "and over those of images alone", mixed("knn_mixing_of_image", k))
        yield Line(f"neighbours kept, k = {k}", "share of a text's nearest texts that stay its nearest", kept)
    told = (
        "accuracy at telling the sides apart on rows that the probe has not seen; 0.5 is chance, and less is what an "
        "alignment fitted on the same rows leaves: means that agree over all rows differ one way in the half that is "
        "learned from and the other way in the half that is not"
    )
    yield Line("linear probe", told, compared("probe_accuracy"))


_ENERGY = {"beta": "‖β‖²", "gamma": "‖γ‖²", "delta": "E‖δ‖²", "zeta": "E‖ζ‖²"}
_PARTS = {
    "beta": "principal mean bias, in U",
    "gamma": "orthogonal mean bias, in V",
    "delta": "zero-mean residual in U",
    "zeta": "zero-mean residual in V",
}


def _pair_lines(report: dict[str, Any]) -> Iterator[Line]:
    pairs = report["pairs"]["by_cloud"]

    def of(*path: str) -> list[float | None]:
        """The value at a path in each cloud's measures."""
        found: list[Any] = list(pairs.values())
        for part in path:
            found = [value[part] for value in found]
        return found

    yield Line("cosine of a pair", "mean over pairs", of("cosine"))
    yield Line("… of rows that are no pair", "mean over all other combinations", of("unpaired_cosine"))
    for way, name in (("text_to_image", "text → image"), ("image_to_text", "image → text")):
        for k in pairs["text"][way]:
            yield Line(f"{name}, R@{k}", f"of {report['pairs']['count']:,} candidates", of(way, k))
    for part, symbol in _ENERGY.items():
        yield Line(symbol, _PARTS[part], of("decomposition", "energy", part))
    yield Line("condition number of δ", "of Cov(δ) within U", of("decomposition", "delta_condition_number"))
    yield Line("condition number of ζ", "of Cov(ζ) within V", of("decomposition", "zeta_condition_number"))
    yield Line("angle of m to U", "degrees; m = E[image − text]", of("decomposition", "mean_to_U_angle"))
    yield Line("angle of β to δ", "degrees, to δ's leading axis", of("decomposition", "beta_to_delta_angle"))
    yield Line("angle of γ to ζ", "degrees, to ζ's leading axis", of("decomposition", "gamma_to_zeta_angle"))


def _size_table(curve: dict[str, Any]) -> Table:
    """Centroid gaps only: the figure and the JSON have the Frechet distances too."""
    note = (
        f"Centroid gap on {curve['held_out']:,} held-out rows a side after a fit on N rows a side, without training "
        f"noise: mean of {curve['trials']} trials. Not aligned: {curve['raw']['centroid_gap']:.4g}."
    )
    for method, sentences in curve["refused"].items():
        note += "".join(f" {method} refused N = {int(size):,}: {said}." for size, said in sentences.items())
    methods = curve["methods"]
    rows = []
    for number, size in enumerate(curve["sizes"]):
        gaps = [_mean(values["centroid_gap"][number]) for values in methods.values()]
        rows.append(Line(f"N = {size:,}", "", [*gaps, curve["expected"][number]]))
    return Table("Sample size", note, [*methods, "sampling alone"], rows)


def _transfer_tables(transfer: dict[str, Any]) -> Iterator[Table]:
    names = transfer["domains"]
    parts = ", ".join(f"{name} {n['text']:,} and {n['image']:,}" for name, n in transfer["rows"].items())
    note = (
        f"Centroid gap on held-out rows of the domain in the column (texts and images: {parts}) after a fit on half "
        f"of the domain in the line, without training noise: mean of {transfer['trials']} trials."
    )
    for method, values in transfer["methods"].items():
        rows = [Line("not aligned", "", [transfer["raw"][name]["centroid_gap"] for name in names])]
        matrix = values["centroid_gap"]["mean"]
        rows += [Line(f"fitted on {name}", "", gaps) for name, gaps in zip(names, matrix, strict=True)]
        rows.append(Line("sampling alone", "of the held-out rows", [transfer["floor"][name] for name in names]))
        refused = transfer["refused"].get(method, {}).items()
        said = note + "".join(f" {method} refused half of {name}: {sentence}." for name, sentence in refused)
        yield Table(f"Domain transfer: {method}", said, names, rows)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
