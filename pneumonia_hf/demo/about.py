"""About: what the page says of its model, limits first, from the reports in the model folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pneumonia_hf.demo.answers import name_model
from pneumonia_hf.models.model_card import find_misfit
from pneumonia_hf.models.run_manifest import read_manifest
from pneumonia_hf.reporting.numbers import read_interval, to_text
from pneumonia_hf.reporting.page import markdown_table

if TYPE_CHECKING:
    from pneumonia_hf.demo.engine import Engine

LIMITS = """## Limits

- **Research software, not a medical device.** It has had no clinical test. Nobody may be diagnosed,
  or sent home, because of it.
- It answers one question, pneumonia or not, about one frontal X-ray. Abnormal images without
  pneumonia are often called pneumonia.
- At a hospital that it has not seen it makes more errors, and its threshold may be wrong.
- An attribution map shows where a score comes from, as far as its method passes its tests. It does
  **not** locate disease.
- Uploads stay in memory for your session, and on disk for a few minutes at most. Nothing is sent
  to another server."""
CITE = """## How to cite

pneumonia-hf, version {version}, Apache-2.0. `CITATION.cff` of the repository has the entry, and the
model card the sources of the training data."""


SHOWN = ("auroc", "sensitivity", "specificity")


def describe_model(engine: Engine) -> str:
    """Return the About text in Markdown."""
    from pneumonia_hf import __version__

    predictor = engine.predictor
    backbone = read_manifest(predictor.path).backbone
    parts = [LIMITS]
    name = f"{name_model(predictor)}{f' ({backbone})' if backbone else ''}"
    parts.append(f"## Measured\n\n**Model:** {name}")
    if engine.reports:
        parts.append(_tabulate(engine.reports))
    else:
        parts.append("This model holds no report: nothing is known of its errors.")
    for report in engine.reports:
        low, high = (report["metrics"]["auroc"][name] for name in ("low", "high"))
        if high is not None and high < 0.5:
            parts.append(f"On {report['data']} **this is worse than chance.**")
        elif low is not None and low <= 0.5:
            parts.append(
                f"On {report['data']} **this cannot be distinguished from chance**: the interval "
                f"of its AUROC reaches 0.5."
            )
    if misfit := find_misfit(engine.reports):
        error = misfit["metrics"]["ece_balanced"]["value"]
        parts.append(
            f"Its probabilities are **not calibrated** for {misfit['data']}: the mean error there "
            f"is {error:.2f}."
        )
    parts += [_describe_methods(engine), CITE.format(version=__version__)]
    return "\n\n".join(parts)


def _tabulate(reports: list[dict[str, Any]]) -> str:
    rows = []
    for one in reports:
        metrics = one["metrics"]
        robustness = one.get("robustness") or {}
        gap, worst = robustness.get("shortcut_gap"), robustness.get("worst")
        rows.append(
            [
                one["data"] + (" (another site)" if one.get("external") else ""),
                one["n"],
                *(to_text(read_interval(metrics[name])) for name in SHOWN),
                f"{gap['value']:.3f}" if gap else "not measured",
                f"{worst['auroc']:.3f} ({worst['name'].replace('_', ' ')})"
                if worst
                else "not measured",
            ]
        )
    header = ["data", "images", "AUROC", "sensitivity", "specificity",
              "AUROC lost with another frame", "worst AUROC of perturbed copies"]  # fmt: skip
    return (
        "Each row is a report in the model folder, with 95% intervals over patients.\n\n"
        f"{markdown_table(header, rows)}"
    )


def _describe_methods(engine: Engine) -> str:
    none = "" if engine.default_method else (
        "**No method has passed its tests on this model**, so a map is shown on request only.\n\n"
    )  # fmt: skip
    lines = [
        f"- {engine.title_of(name)}: {engine.verdict_of(name)}. "
        f"{engine.sentences.get(name, '')}".rstrip()
        for name in engine.methods
    ]
    return (
        f"## Attribution maps\n\n{none}" + "\n".join(lines) + "\n\nThe tests are those of the "
        "model's reports: does the highest place of the map lie where radiologists drew a box, or "
        "where an opacity was simulated, more often than a fixed map of the lungs; does the map "
        "depend on the weights; is it repeatable?"
    )
