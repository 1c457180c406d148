"""The sections of a report on the scores themselves, as Markdown."""

from __future__ import annotations

import math

import numpy as np

from pneumonia_hf.data.patients import describe_patients, named_by_file
from pneumonia_hf.evaluation.evaluate import Report
from pneumonia_hf.evaluation.metrics import METRICS
from pneumonia_hf.evaluation.report.interval_text import to_text
from pneumonia_hf.evaluation.subgroups import SUBGROUP_METRICS, Gap
from pneumonia_hf.files import markdown_table
from pneumonia_hf.labels import LABELS

DIFFERS = 0.25  # share of an interval's width from which a BCa interval is shown beside it


def describe_data(report: Report) -> list[str]:
    """Return what was tested, and what the audit says of it."""
    scores = report.scores
    count, patients = len(scores.labels), len(set(scores.patients))
    normals, pneumonias = np.bincount(scores.labels, minlength=2).tolist()
    text = [
        f"{count} images of {describe_patients(patients, named_by_file(scores.patients))}: "
        f"{normals} NORMAL, {pneumonias} PNEUMONIA (prevalence {pneumonias / count:.1%}). An image "
        f"is positive at or above a probability of {report.operating_point.threshold:.4f}, the "
        f"model's own threshold. The tables count every image, including the "
        f"{report.referral.referred} that the model refers to a person.",
        f"Of these images the model was trained on {report.seen_in_training}, chosen on "
        f"{report.seen_in_validation}, and {report.seen_in_test} are of its own test split, by "
        f"their bytes. Weights: SHA-256 `{report.weights_sha256 or 'unknown'}`.",
    ]
    if report.findings:
        rows = [[one.check.replace("_", " "), one.verdict, one.text] for one in report.findings]
        text += [
            "**What the audit says of this data** (a label that goes with size, view, copy or site "
            "makes every number below doubtful):",
            markdown_table(["check", "verdict", "finding"], rows),
        ]
    text.append("\n".join(f"- not read: {reason}" for reason in report.unreadable))
    return text


def describe_discrimination(report: Report) -> list[str]:
    """Return all metrics with their intervals, and the confusion matrix."""
    metrics = []
    for name, one in report.metrics.items():
        corrected = report.metrics_bca[name]
        width = one.high - one.low
        apart = max(abs(corrected.low - one.low), abs(corrected.high - one.high))
        shown = width > 0 and apart > DIFFERS * width
        ends = "" if math.isnan(one.low) else f"{one.low:.4f} to {one.high:.4f}"
        bca = f"{corrected.low:.4f} to {corrected.high:.4f}" if shown else ""
        value = "not defined" if math.isnan(one.value) else f"{one.value:.4f}"
        metrics.append([METRICS[name].title, value, ends, bca])
    c = report.confusion
    confusion = [
        ["NORMAL", c["true_negative"], c["false_positive"]],
        ["PNEUMONIA", c["false_negative"], c["true_positive"]],
    ]
    prevalence = float(np.mean(report.labels))
    return [
        markdown_table(["metric", "value", "95% interval", "BCa, where it differs"], metrics),
        f"The intervals are the 2.5th to 97.5th percentiles over {report.config.resamples} "
        f"bootstrap resamples of patients at the fixed threshold; a BCa interval (Efron 1987) is "
        f"shown where an end differs by more than a quarter of the width. DeLong's interval of the "
        f"AUROC, for patients with several images (Obuchowski 1997): "
        f"{to_text(report.auroc_delong)}. PPV, NPV, accuracy, F1, kappa, the Matthews correlation, "
        f"AUPRC and the losses depend on the prevalence, here {prevalence:.1%}.",
        markdown_table(["label", "predicted NORMAL", "predicted PNEUMONIA"], confusion),
        f"```text\n{_classification_report(report)}\n```",
    ]


def _classification_report(report: Report) -> str:
    from sklearn.metrics import classification_report

    positive = report.probabilities >= report.operating_point.threshold
    text = classification_report(
        report.labels, positive.astype(int), target_names=LABELS, digits=4, zero_division=np.nan
    )
    return text.rstrip().strip("\n")


def describe_thresholds(report: Report) -> list[str]:
    """Return what other thresholds and prevalences would give."""
    point = report.operating_point
    thresholds = [
        [one.name, f"{one.threshold:.4f}", to_text(one.sensitivity), to_text(one.specificity),
         "yes" if one.usable else "no: found on this data"]
        for one in report.thresholds
    ]  # fmt: skip
    values = [
        [f"{one.prevalence:.0%}", to_text(one.ppv), to_text(one.npv)]
        for one in report.predictive_values
    ]
    own = (
        f"The model's threshold {point.threshold:.4f} was chosen on its validation patients, whose "
        f"resampling moves it between {point.low:.4f} and {point.high:.4f}. "
        if point.low < point.high
        else "The model stores no range for its threshold. "
    )
    return [
        own + "The other rows say how far the threshold has shifted on this data. They must not be "
        "used: a result at a threshold that was found on the same images is optimistically biased.",
        markdown_table(
            ["threshold", "probability", "sensitivity", "specificity", "usable"], thresholds
        ),
        "Predictive values at the model's threshold, where sensitivity and specificity stay as "
        "they are:",
        markdown_table(["prevalence", "PPV", "NPV"], values),
        "The decision curve (Vickers and Elkin 2006) shows the net benefit of acting on the "
        "model's answer, for readers who would act at different probabilities.",
    ]


def describe_calibration(report: Report) -> list[str]:
    """Return calibration error, slope, intercept, and the losses by prevalence."""
    one = report.calibration
    rows = [
        [row.name, f"{row.brier:.4f}", f"{row.log_loss:.4f}", f"{row.ece:.4f}"]
        for row in one.losses
    ]
    basis = (
        "The model's probability is calibrated for a prevalence of 50%."
        if report.calibrated
        else "The model does not say for which prevalence its probability is meant; 50% is assumed."
    )
    return [
        f"{basis} Moved to this data's prevalence of {np.mean(report.labels):.1%}, its calibration "
        f"slope is {to_text(one.slope)} (below 1: overconfident) and its intercept "
        f"{to_text(one.intercept)} (above 0: the probabilities are too low; Cox 1958). "
        f"Spiegelhalter's test (1986) gives p = {one.p:.2g}; a small p is evidence against "
        f"calibration.",
        markdown_table(["images", "Brier score", "log loss", "calibration error"], rows),
        "The calibration error is over ten bins of equal size. The rows of other prevalences weigh "
        "the classes of this data; a probability that is not moved to the prevalence is wrong "
        "there.",
    ]


def describe_referral(report: Report) -> list[str]:
    """Return the share of referred images beside the error on the others."""
    one, count = report.referral, len(report.labels)
    kept, referred = count - one.referred, one.referred
    rows = [
        ["all", count, "100%", to_text(one.error)],
        ["kept", kept, f"{1 - referred / count:.1%}", to_text(one.error_of_kept)],
        ["referred", referred, f"{referred / count:.1%}", _to_share(one.error_of_referred)],
    ]
    reasons = [
        [each.reason, each.images, _to_share(each.error), _to_share(each.error_without)]
        for each in report.referral_reasons
    ]
    curve = report.risk_coverage
    return [
        markdown_table(["", "images", "share", "error (95% interval)"], rows),
        "An image is referred if its probability lies in the range in which resampling the "
        "validation patients moves the threshold, if the input gate finds it unlike the training "
        "images, or if the input checks doubt that it is a chest X-ray. Referral helps only if the "
        "error on the kept images is below that on all. Reasons overlap:",
        markdown_table(["reason", "images", "their error", "error without them"], reasons),
        f"If the surest images, farthest from the threshold, are answered first, the mean error "
        f"over all shares of answered images (AURC, Geifman and El-Yaniv 2017) is "
        f"{to_text(curve.aurc)}, {curve.excess:.4f} above that of a perfect order.",
    ]


def _to_share(error: float) -> str:
    return "-" if math.isnan(error) else f"{error:.4f}"


def describe_subgroups(report: Report) -> list[str]:
    """Return the metrics by group, the gaps that chance does not explain, and pooling."""
    if not report.subgroups:
        return []
    rows = [
        [
            f"{one.column} {one.value}",
            one.normals,
            one.pneumonias,
            *(
                (to_text(one.metrics[name]) if name in one.metrics else "too few")
                + _describe_gap(one.gaps.get(name))
                + ("*" if one.against_all and name == "auroc" and name in one.metrics else "")
                for name in SUBGROUP_METRICS
            ),
        ]
        for one in report.subgroups
    ]
    flagged = [
        f"- {one.column} {one.value}: {name} differs from the other images by "
        f"{to_text(gap.difference)}, p = {gap.p:.2g}"
        for one in report.subgroups
        for name, gap in one.gaps.items()
        if gap.flagged
    ]
    pooled = [
        [one.column, to_text(one.pooled), to_text(one.within)]
        for one in report.stratified
        if not math.isnan(one.within.value)
    ]
    return [
        markdown_table(
            ["group", "NORMAL", "PNEUMONIA", *(METRICS[name].title for name in SUBGROUP_METRICS)],
            rows,
        ),
        "* against all images of the other class, since the group has one class only."
        if any(one.against_all and "auroc" in one.metrics for one in report.subgroups)
        else "",
        "Differences from all other images that chance and the number of comparisons do not "
        "explain (adjusted p below 0.05, Benjamini and Yekutieli 2001; marked (!) above):"
        if flagged
        else "No difference between a group and the other images is larger than chance and the "
        "number of comparisons explain (adjusted p below 0.05, Benjamini and Yekutieli 2001).",
        "\n".join(flagged),
        "The AUROC over all pairs of images, beside that over pairs within one group. Where they "
        "differ, the mix of groups made a part of the first: it is too high if the second is "
        "lower, and hides what the model can do if the second is higher."
        if pooled
        else "",
        markdown_table(["column", "all pairs", "pairs within a group"], pooled) if pooled else "",
    ]


def _describe_gap(gap: Gap | None) -> str:
    return " (!)" if gap is not None and gap.flagged else ""
