"""Section: the same model on other sites, and on images of neither class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.folder_source import list_others
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.data.sources import parse_source
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.choose_images import USED, leave_out_used, own_hashes
from pneumonia_hf.evaluation.context import Evaluation, Site
from pneumonia_hf.evaluation.scores import Scores, score_images
from pneumonia_hf.evaluation.subgroups import Others, list_groups, score_other_classes
from pneumonia_hf.files import expand
from pneumonia_hf.reporting.drawing import draw_forest
from pneumonia_hf.reporting.numbers import to_count, to_share, to_text
from pneumonia_hf.reporting.page import Figure, Section, Table
from pneumonia_hf.statistics.intervals import Interval, draw_patients, percentile_interval
from pneumonia_hf.statistics.metrics import auroc, bootstrap_intervals, has_few_patients
from pneumonia_hf.statistics.selective import Referral, measure_referral

if TYPE_CHECKING:
    from pneumonia_hf.inference.predictor import Predictor

COMPARED = ("auroc", "accuracy", "sensitivity", "specificity", "ece_balanced")
OF_SITES = ("auroc", "sensitivity", "specificity", "ece_balanced")


@dataclass(frozen=True)
class SiteResult:
    """A model's results on the images of one site, at its own threshold."""

    name: str
    normals: int
    pneumonias: int
    patients: int
    left_out: int  # images of patients on whom the model was trained or chosen
    in_test: int  # images of the model's own test split
    metrics: dict[str, Interval]  # of COMPARED
    drop: Interval | None  # AUROC of the report's own data less that of this site; None: own data
    referral: Referral
    others: tuple[Others, ...]  # images of neither class

    @property
    def seen(self) -> bool:
        """Whether the model's own splits hold images of this site; without hashes, unknown."""
        return bool(self.left_out or self.in_test)


def load_site(text: str, predictor: Predictor, other_classes: Sequence[str] = ()) -> Site:
    """Return the images of the source `[NAME=][KIND:]WHERE` that are new to the model.

    Images are recognised by their bytes. All images of a patient are left out if one of them is in
    the model's training or validation split.

    Raises:
        UserError: the model was trained or chosen on all of the images or patients.
    """
    from datasets import concatenate_datasets

    source = parse_source(text)
    data = concatenate_datasets(list(load_splits([text], others=other_classes).values()))
    used, own_test = own_hashes(predictor, USED), own_hashes(predictor, ["test"])
    hashes, patients = to_hex(hash_images(data)), data["patient"][:]
    known = {patient for one, patient in zip(hashes, patients, strict=True) if one in used}
    new = [row for row, patient in enumerate(patients) if patient not in known]
    if not new:
        raise UserError(f"The model was trained or chosen on all images of {text}; leave it out.")
    present = []
    if source.is_folder:
        present = [one for one in other_classes if (expand(source.where) / one).is_dir()]
    others = list_others(source.where, present) if present else []
    return Site(
        source.name,
        data.select(new),
        len(data) - len(new),
        sum(hashes[row] in own_test for row in new),
        tuple(leave_out_used(others, predictor)),
    )


def measure_site(
    site: Site,
    scores: Scores,
    threshold: float,
    resamples: int,
    main: Scores | None = None,
    others: Sequence[Others] = (),
) -> SiteResult:
    """Return the results of a site, and the drop of the AUROC from `main` to it.

    Patients of the two sites are resampled independently.
    """
    labels, probabilities, patients = scores.labels, scores.probabilities, scores.patients
    rows = list(draw_patients(labels, patients, resamples))
    metrics = bootstrap_intervals(labels, probabilities, threshold, patients, rows, COMPARED)
    drop = None
    if main is not None:
        value = auroc(main.labels, main.probabilities, 0) - metrics["auroc"].value
        of_main = draw_patients(main.labels, main.patients, resamples, seed=14)
        drops = [
            auroc(main.labels[one], main.probabilities[one], 0)
            - auroc(labels[own], probabilities[own], 0)
            for one, own in zip(of_main, rows, strict=True)
        ]
        drop = percentile_interval(value, [] if has_few_patients(labels, patients) else drops)
    return SiteResult(
        site.name,
        int(np.sum(labels == 0)),
        int(np.sum(labels == 1)),
        len(set(patients)),
        site.left_out,
        site.in_test,
        metrics,
        drop,
        measure_referral(labels, probabilities >= threshold, scores.referred, rows),
        tuple(others),
    )


def measure(evaluation: Evaluation, numbers: Mapping[str, Any]) -> Section:
    """Return the results on other sites, and on images of neither class."""
    predictor, resamples = evaluation.predictor, evaluation.config.resamples
    found = []
    for site in evaluation.sites:
        scores = score_images(predictor, site.data, site.name, steps=evaluation.steps)
        views = {name: of for name, of in list_groups(scores.rows, []).items() if name == "view"}
        others = score_other_classes(predictor, site.others, views, scores, resamples).groups
        images = scores, evaluation.threshold, resamples, evaluation.scores
        found.append(measure_site(site, *images, others))
    groups = [("", one) for one in evaluation.others.groups]
    groups += [(f"{site.name}, ", one) for site in found for one in site.others]
    body = _describe_sites(evaluation, found) if found else []
    if groups:
        rows = [
            [f"{prefix}{one.name}", one.count,
             f"{one.called} ({to_share(one.called, one.count)})",
             f"{one.referred} ({to_share(one.referred, one.count)})", f"{one.median:.4f}",
             to_text(one.auroc, "too few")]
            for prefix, one in groups
        ]  # fmt: skip
        header = ["class", "images", "at or above the threshold", "referred", "median probability",
                  "AUROC of PNEUMONIA against them"]  # fmt: skip
        body += [
            "Images of neither class, which are in no metric; the pneumonias are those of the same "
            "group:",
            Table(header, rows),
        ]
    return Section(
        "Other sites and other findings",
        tuple(body),
        {
            "sites": [asdict(one) | {"seen": one.seen} for one in found],
            "other_classes": [asdict(one) for one in evaluation.others.groups],
        },
    )


def _describe_sites(evaluation: Evaluation, found: list[SiteResult]) -> list[str | Table | Figure]:
    counts = np.bincount(evaluation.labels, minlength=2)
    every = [
        (evaluation.data, any(evaluation.seen.values()), counts, evaluation.metrics, None,
         evaluation.referral),
        *((one.name, one.seen, (one.normals, one.pneumonias), one.metrics, one.drop, one.referral)
          for one in found),
    ]  # fmt: skip
    rows = [
        [name, "yes" if seen else "not known", *counts, to_text(metrics["auroc"]),
         to_text(drop, "") if drop else "", *(to_text(metrics[one]) for one in OF_SITES[1:]),
         to_share(referral.referred, sum(counts)), to_text(referral.error),
         to_text(referral.error_of_kept)]
        for name, seen, counts, metrics, drop, referral in every
    ]  # fmt: skip
    header = ["site", "in the model's own splits", "NORMAL", "PNEUMONIA", "AUROC",
              "drop of the AUROC", "sensitivity", "specificity", "calibration error at 50%",
              "referred", "error", "error of the kept"]  # fmt: skip
    areas = [(name, metrics["auroc"], False) for name, _, _, metrics, _, _ in every]
    return [
        "The same model at the same threshold. The drop is the AUROC of the first row less "
        "that of the site, with patients of both resampled. A site in the model's own splits, "
        "by the bytes of its images, is one that it knows: such a row says nothing about a "
        "hospital that it has never seen.",
        Table(header, rows),
        "\n".join(
            f"- {one.name}: without {to_count(one.left_out, 'image')} of patients on whom the "
            f"model was trained or chosen; {one.in_test} of the others are of its own test split."
            for one in found
            if one.seen
        ),
        Figure("sites", lambda: draw_forest(areas, "AUROC with 95% interval"), is_wide=True),
    ]
