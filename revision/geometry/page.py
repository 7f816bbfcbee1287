"""The geometry report as one HTML page that needs nothing else: pictures inlined, no script, no outside resource."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from revision.geometry.table import Line, Table, tables

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d1d1f; background: #fff; max-width: 60rem; margin: 2.5rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.1rem; margin-top: 2.4rem; }
.facts { color: #555; margin-top: 0; }
table { border-collapse: collapse; width: 100%; }
.wide { overflow-x: auto; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #e4e4e7; text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; font-weight: 400; }
td small { display: block; color: #777; max-width: 26rem; }
figure { margin: 2rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; }
"""

CAPTIONS = {
    "pca": "Rows of both sides in one plane, the first two principal components of image and raw text together. "
    "Crosses are the means.",
    "methods": "The measures side by side. The dotted line is what the images give: their own value, one half of them "
    "against the other, or, for the centroid gap, kNN mixing and the probe, what sampling alone gives. The bar at kNN "
    "mixing spans the shares of the two sides: from one end of the axis to the other where one cloud is merely wider.",
    "cosines": "Density of the cosines of all pairs within each cloud. JS: Jensen-Shannon divergence from the images.",
    "spectra": "Eigenvalues of the covariances; α is the exponent of the power law over the shaded ranks.",
    "means": "Means coordinate by coordinate. Left: on the line they agree. Right: how far they are apart, sorted.",
    "pairs": "Mean squared gap of a pair in its four orthogonal parts: mean and residual, within the leading subspace "
    "U and its complement V. Beside the bars, the mean cosine of a pair.",
    "sample_size": "Gap that is left on held-out rows over the number of rows fitted on: mean and range over trials; "
    "no training noise. Dotted: what sampling alone gives, for the fit and for the held-out rows.",
    "domain_transfer": "Centroid gap on held-out rows of a domain (column) after an alignment fitted on a "
    "domain (row), without training noise.",
    "frame": "How the gap came about while the encoder trained, in a frame that was frozen at one step: U, the leading "
    "subspace of both covariances, and V, its complement. Over the training step: leakage of the gradients, the mean "
    "bias in V, and the shape of the residuals in U and in V.",
}


def write_page(title: str, report: dict[str, Any], figures: Sequence[Path]) -> str:
    """The page as text.

    Args:
        title: of the page.
        report: what `revision gap` writes to `report.json`: `encoder`, `sample`, `centroid_gap_all_rows` (by cloud),
            the numbers of `report.compare` and, where there are some, `pairs`, `sample_size`, `domain_transfer` and
            `frame`.
        figures: PNG files, in the order in which they are shown.
    """
    said = [f"Encoder {report['encoder']}.", *([report["pairs_left_out"]] if "pairs_left_out" in report else [])]
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"<p class=facts>{escape(' '.join(said))}</p>\n"
        f"{''.join(map(_table, tables(report)))}"
        f"<h2>Figures</h2>\n{''.join(map(_figure, figures))}</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    body = "".join(map(_row, table.lines))
    return (
        f"<h2>{escape(table.title)}</h2>\n<p class=facts>{escape(table.note)}</p>\n<div class=wide><table>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )


def _row(line: Line) -> str:
    cells = "".join(f"<td>{'' if value is None else f'{value:.4g}'}</td>" for value in line.values)
    return f"<tr><td>{escape(line.name)}<small>{escape(line.meaning)}</small></td>{cells}</tr>\n"


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = escape(CAPTIONS[path.stem])
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>\n"
