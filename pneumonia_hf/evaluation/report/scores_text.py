"""The sections of a report on the scores themselves, as Markdown."""

from __future__ import annotations

import math

import numpy as np

from pneumonia_hf.data.patients import describe_patients, named_by_file
from pneumonia_hf.evaluation.evaluate import Report
from pneumonia_hf.evaluation.report.interval_text import to_slope, to_text
from pneumonia_hf.evaluation.subgroups import SUBGROUP_METRICS, Gap
from pneumonia_hf.files import markdown_table
from pneumonia_hf.labels import LABELS
from pneumonia_hf.statistics.metrics import FEWEST_PATIENTS, METRICS


def describe_data(report: Report) -> list[str]:
    """Return what was tested, and what the audit says of it."""
    scores = report.scores
    count, patients = len(scores.labels), len(set(scores.patients))
    normals, pneumonias = np.bincount(scores.labels, minlength=2).tolist()
    text = [
        f"{count} images of {describe_patients(patients, named_by_file(scores.patients))}: "
        f"{normals} NORMAL, {pneumonias} PNEUMONIA (prevalence {pneumonias / count:.1%}). Labels: "
        f"{report.label_source or 'their source is not stated'}. An image is positive at or above "
        f"a probability of {_name_threshold(report)}. The tables count every image, including the "
        f"{report.referral.referred} that the model refers to a person.",
        _describe_columns(report),
        f"Of these images the model was trained on {report.seen_in_training}, chosen on "
        f"{report.seen_in_validation}, and {report.seen_in_test} are of its own test split, by "
        f"their bytes. Weights: SHA-256 `{report.weights_sha256 or 'unknown'}`.",
    ]
    if report.findings:
        rows = [[one.check.replace("_", " "), one.verdict, one.text] for one in report.findings]
        text += [
            "**What the audit says of this data:**",
            markdown_table(["check", "verdict", "finding"], rows),
        ]
    text.append("\n".join(f"- not read: {reason}" for reason in report.unreadable))
    return text


def _name_threshold(report: Report) -> str:
    threshold = f"{report.operating_point.threshold:.4f}"
    return f"{threshold}, " + (
        "the model's own threshold" if report.calibrated else "since the model stores no threshold"
    )


def _describe_columns(report: Report) -> str:
    """Return how the images spread over the groups of each column: views, ages, sites."""
    columns: dict[str, list[str]] = {}
    for one in report.subgroups:
        counts = f"{one.value} {one.normals + one.pneumonias}"
        columns.setdefault(one.column, []).append(f"{counts} ({one.pneumonias} PNEUMONIA)")
    if not columns:
        return "The data has no metadata that makes groups: neither view nor age is known."
    return " ".join(f"By {name}: {', '.join(groups)}." for name, groups in columns.items())


def describe_discrimination(report: Report) -> list[str]:
    """Return all metrics with their intervals, and the confusion matrix."""
    metrics = []
    for name, one in report.metrics.items():
        ends = "" if math.isnan(one.low) else f"{one.low:.4f} to {one.high:.4f}"
        value = "not defined" if math.isnan(one.value) else f"{one.value:.4f}"
        metrics.append([METRICS[name].title, value, ends])
    c = report.confusion
    confusion = [
        ["NORMAL", c["true_negative"], c["false_positive"]],
        ["PNEUMONIA", c["false_negative"], c["true_positive"]],
    ]
    prevalence = float(np.mean(report.labels))
    return [
        markdown_table(["metric", "value", "95% interval"], metrics),
        f"The intervals are the 2.5th to 97.5th percentiles over {report.config.resamples} "
        f"bootstrap resamples of patients at the fixed threshold. Where no resample changes a "
        f"proportion, its interval is the exact binomial one (Clopper and Pearson 1934), and other "
        f"metrics have none; nor has an area with fewer than {FEWEST_PATIENTS} patients of a "
        f"class. PPV, NPV, accuracy, F1, kappa, the Matthews correlation, AUPRC and the losses "
        f"depend on the prevalence, here {prevalence:.1%}.",
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
        [one.name if report.calibrated or not one.usable else "0.5, since the model stores none",
         f"{one.threshold:.4f}", to_text(one.sensitivity), to_text(one.specificity),
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
        f"slope (below 1: overconfident) is {to_slope(one.slope)}; its intercept (above 0: the "
        f"probabilities are too low; Cox 1958) is {to_text(one.intercept)}. The "
        f"likelihood-ratio test that they are 1 and 0, for images that count as independent, gives "
        f"p = {one.p:.2g}; a small p is evidence against calibration.",
        markdown_table(["images", "Brier score", "log loss", "calibration error"], rows),
        "The calibration error is over ten bins of equal size; the figure shows the probabilities "
        "moved to this data's prevalence. The rows of other prevalences weigh "
        "the classes of this data; a probability that is not moved to the prevalence is wrong "
        "there.",
    ]


def describe_referral(report: Report) -> list[str]:
    """Return the share of referred images beside the error on the others."""
    one, count = report.referral, len(report.labels)
    kept, referred = count - one.referred, one.referred
    metrics, alone = report.metrics, report.referral_by_threshold
    rows = [
        ["all", count, "100%", to_text(one.error), to_text(metrics["sensitivity"]),
         to_text(metrics["specificity"])],
        ["kept, if the range of the threshold alone refers", count - alone.referred,
         f"{1 - alone.referred / count:.1%}", to_text(alone.error_of_kept),
         to_text(alone.sensitivity_of_kept), to_text(alone.specificity_of_kept)],
        ["kept, if gate and input checks refer too", kept, f"{1 - referred / count:.1%}",
         to_text(one.error_of_kept), to_text(one.sensitivity_of_kept),
         to_text(one.specificity_of_kept)],
        ["referred", referred, f"{referred / count:.1%}", _to_share(one.error_of_referred), "", ""],
    ]  # fmt: skip
    reasons = [
        [each.reason, each.images, _to_share(each.error), _to_share(each.error_without)]
        for each in report.referral_reasons
    ]
    curve = report.risk_coverage
    return [
        markdown_table(
            ["", "images", "share", "error (95% interval)", "sensitivity", "specificity"], rows
        ),
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
        [one.column, to_text(one.pooled), to_text(one.within), to_text(one.difference)]
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
        "explain (marked (!) above):"
        if flagged
        else "No difference between a group and the other images is larger than chance and the "
        "number of comparisons explain.",
        "\n".join(flagged),
        "A difference is marked if its adjusted p-value (Benjamini and Yekutieli 2001) is below "
        "0.05. The p-value is the larger of two: of the bootstrap over patients, and of Fisher's "
        "exact test (for the AUROC, of permuted groups), since the bootstrap knows no error of a "
        "group that has none. Of a column with two groups only the first is compared.",
        "The AUROC over all pairs of images, beside that over pairs within one group. The "
        "difference is what the mix of groups contributes: above 0, the first is too high; below "
        "0, it hides what the model can do."
        if pooled
        else "",
        markdown_table(["column", "all pairs", "pairs within a group", "difference"], pooled)
        if pooled
        else "",
    ]


def _describe_gap(gap: Gap | None) -> str:
    return " (!)" if gap is not None and gap.flagged else ""
