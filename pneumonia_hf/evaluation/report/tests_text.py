"""The sections of a report on robustness, attribution maps, sites and other models."""

from __future__ import annotations

import numpy as np

from pneumonia_hf.evaluation.compare import Comparison
from pneumonia_hf.evaluation.evaluate import FEWEST_HITS, Report
from pneumonia_hf.evaluation.perturbations import CONTROLS, PERTURBATIONS
from pneumonia_hf.evaluation.report.checklist import fill_checklist
from pneumonia_hf.evaluation.report.examples import choose_examples
from pneumonia_hf.evaluation.report.interval_text import to_short, to_text
from pneumonia_hf.files import markdown_table
from pneumonia_hf.labels import LABELS
from pneumonia_hf.statistics.metrics import METRICS

NOT_TESTED = (
    f"the tests need one network, and {FEWEST_HITS} pneumonias and normals each on the right side "
    f"of the threshold"
)
MOST_CASES = 20  # of the images on which two models disagree


def describe_robustness(report: Report) -> list[str]:
    """Return the results on perturbed copies."""
    found = report.robustness
    if found is None:
        return []
    every = PERTURBATIONS | CONTROLS
    rows = [
        [
            one.name.replace("_", " "),
            f"{one.level:g} {every[one.name].unit}" if one.name in every else "",
            *(to_text(interval) for interval in (one.auroc, one.sensitivity, one.specificity)),
            f"{one.flipped:.1%}",
            "yes, and selection" if one.selected else "yes" if one.trained else "",
        ]
        for one in (*found.results, found.control)
    ]
    worst = found.worst
    swaps = ", ".join(
        f"{to_text(gap)} at {float(level):.0%} ({1 - (1 - 2 * float(level)) ** 2:.0%} of the area)"
        for level, gap in found.swap_gaps.items()
    )
    return [
        f"**Shortcut gap {to_text(found.shortcut_gap)}; worst case AUROC "
        f"{worst.auroc.value:.4f} ({worst.name.replace('_', ' ')} {worst.level:g}).** The copies "
        f"of {found.images} images have another frame, other markers, another look or a lower "
        f"quality, and the same diagnosis. The shortcut gap is the AUROC on the plain images less "
        f"that on copies whose outer 20% of each side come from an image of the other class. By "
        f"the share of each side it is {swaps}. At 20% the sides, the bases and the apices of the "
        f"lungs are exchanged too: such copies are hard for an honest reader of the outer lung as "
        f"well, and the gaps at 5% and 10% say more about markers and margins.",
        "The last row is the reverse, and not among the worst: the image's own frame, and within "
        "it (20% from each side) an image of the other class. A model that decides by what is "
        "inside ranks these copies the wrong way round: the lower its AUROC, the better.",
        "Flipped is the share of the images whose side of the threshold changes. In training: the "
        "model's augmentation made such changes, and its checkpoint was selected on such copies "
        "of validation images, so that the row says less about changes that it has not met.",
        markdown_table(
            ["copies", "level", "AUROC", "sensitivity", "specificity", "flipped", "in training"],
            rows,
        ),
    ]


def describe_faithfulness(report: Report) -> list[str]:
    """Return the tests of the attribution methods."""
    found = report.faithfulness
    if found is None:
        wanted = report.config.attribution_images
        return [f"Not tested: {NOT_TESTED}."] if wanted else []
    rows, tests = [], []
    for one in found.results:
        verdict = f"{one.verdict}: {', '.join(one.faults)}" if one.faults else one.verdict
        rows.append(
            [_name_method(one.method), verdict, f"{one.seconds:.2f}", to_short(one.deletion),
             to_short(one.insertion), to_short(one.gain_over_random),
             to_short(one.gain_over_centre)]
        )  # fmt: skip
        if one.verdict:
            columns = (one.occlusion, one.randomised, one.repeatable, one.seeds,
                       one.completeness_error, one.border, one.infidelity,
                       one.sensitivity)  # fmt: skip
            tests.append([_name_method(one.method), *map(to_short, columns)])
    best = "**No method passes.**"
    if found.best:
        best = (
            f"**{_name_method(found.best)}** has the largest gain per second among those that pass."
        )
    return [
        f"Tested on {found.images} true positives, with 95% intervals over them, not adjusted for "
        f"the number of methods: so few images show large effects only. "
        f"{best} A map of a method that passes shows "
        f"where the score comes from; it does not locate disease.",
        markdown_table(
            [
                "method",
                "verdict",
                "seconds",
                "deletion",
                "insertion",
                "gain over random maps",
                "gain over a centre blob",
            ],
            rows,
        ),
        "Deletion and insertion (after Petsiuk et al. 2018): the mean probability while the "
        "highest cells of a map are replaced by those of normal images (lower is better), and "
        "while they are put into normal images (higher is better). Gain: insertion less deletion, "
        "minus that of the control.",
        markdown_table(
            [
                "method",
                "agreement with occlusion",
                "with permuted weights",
                "with a shifted image",
                "with another seed",
                "completeness error",
                "share in the border",
                "infidelity",
                "largest sensitivity",
            ],
            tests,
        ),
        "Correlations over 7 x 7 cells: of ranks with occlusion, with the map after all weight "
        "tensors are permuted (Adebayo et al. 2018: should be low; the mean of two permutations), "
        "with that of a shifted image and, where a method is random, of another seed (should be "
        "high). The completeness error is how far the sum of integrated gradients is from the "
        "difference in log odds that they should explain. The border is the outer tenth of each "
        f"side, {found.border_area:.0%} of the image: more attribution there than that is a "
        "shortcut made visible. Infidelity (Yeh et al. 2019) and sensitivity are captum's; lower "
        "is better.",
        "A method passes if both gains are above 0, the correlation with permuted weights is below "
        "0.5, those with a shifted image and another seed are above 0.7, and the completeness "
        "error is below 5%.",
    ]


def _name_method(name: str) -> str:
    return {"random": "control: random maps", "centre": "control: centre blob"}.get(
        name, name.replace("_", " ")
    )


def describe_sites(report: Report) -> list[str]:
    """Return the results on other sites, and on images of neither class."""
    text = []
    if report.sites:
        own = report.metrics
        main = report.seen_in_training + report.seen_in_validation + report.seen_in_test
        every = [
            (report.data, bool(main), np.bincount(report.labels, minlength=2), own, None,
             report.referral),
            *((one.name, one.seen, (one.normals, one.pneumonias), one.metrics, one.drop,
               one.referral) for one in report.sites),
        ]  # fmt: skip
        rows = [
            [name, "yes" if seen else "not known", *counts, to_text(metrics["auroc"]),
             to_text(drop) if drop else "", to_text(metrics["sensitivity"]),
             to_text(metrics["specificity"]), to_text(metrics["ece_balanced"]),
             f"{referral.referred / sum(counts):.1%}", to_text(referral.error),
             to_text(referral.error_of_kept)]
            for name, seen, counts, metrics, drop, referral in every
        ]  # fmt: skip
        header = ["site", "in the model's own splits", "NORMAL", "PNEUMONIA", "AUROC",
                  "drop of the AUROC", "sensitivity", "specificity", "calibration error at 50%",
                  "referred", "error", "error of the kept"]  # fmt: skip
        text += [
            "The same model at the same threshold. The drop is the AUROC of the first row less "
            "that of the site, with patients of both resampled. A site in the model's own splits, "
            "by the bytes of its images, is one that it knows: such a row says nothing about a "
            "hospital that it has never seen.",
            markdown_table(header, rows),
            "\n".join(
                f"- {one.name}: {one.left_out} images of patients on whom the model was trained or "
                f"chosen are left out; {one.in_test} of the others are of its own test split."
                for one in report.sites
                if one.seen
            ),
        ]
    groups = [("", one) for one in report.others]
    groups += [(f"{site.name}, ", one) for site in report.sites for one in site.others]
    if groups:
        rows = [
            [
                f"{prefix}{one.name}",
                one.count,
                f"{one.called} ({one.called / one.count:.1%})",
                f"{one.referred} ({one.referred / one.count:.1%})",
                f"{one.median:.4f}",
            ]
            for prefix, one in groups
        ]
        header = ["class", "images", "at or above the threshold", "referred", "median probability"]
        text += ["Images of neither class, which are in no metric:", markdown_table(header, rows)]
    return text


def describe_comparison(report: Report) -> list[str]:
    """Return the paired differences from another model."""
    one = report.comparison
    if one is None:
        return []
    rows = [[METRICS[name].title, to_text(value)] for name, value in one.differences.items()]
    test = one.mcnemar
    cases = [
        [case.file, LABELS[case.label], f"{case.first:.4f}", f"{case.second:.4f}"]
        for case in one.disagreements[:MOST_CASES]
    ]
    return [
        f"{report.model} less {one.other}, on the same images, each at its own threshold. "
        f"Intervals are of a paired bootstrap over patients, also in place of a p-value of the "
        f"AUROCs; one that contains 0 does not exclude that both are equal. {_describe_seen(one)}",
        markdown_table(["metric", "difference (95% interval)"], rows),
        f"McNemar's exact test: {report.model} alone is wrong on {test.only_first_wrong} images, "
        f"{one.other} alone on {test.only_second_wrong}, p = {test.p:.2g}; it counts images as "
        f"independent.",
        f"They disagree on {len(one.disagreements)} images; the farthest apart:" if cases else "",
        markdown_table(["file", "label", report.model, one.other], cases) if cases else "",
    ]


def _describe_seen(one: Comparison) -> str:
    used = one.seen.get("train", 0) + one.seen.get("validation", 0)
    if used:
        return (
            f"**{one.other} was trained or chosen on {used} of the images: its numbers are "
            f"optimistically biased.**"
        )
    return f"By their bytes, {one.other} was trained or chosen on none of the images."


def describe_examples(report: Report) -> list[str]:
    """Return the examples as a table."""
    rows = [
        [one.kind, one.file, one.label, f"{one.probability:.4f}", one.decision]
        for one in choose_examples(report.scores, report.operating_point.threshold)
    ]
    return [
        "Sure is far from the threshold. `--with_images` adds a sheet of these images with their "
        "attribution maps.",
        markdown_table(["", "file", "label", "probability", "decision"], rows),
    ]


def describe_published(report: Report) -> list[str]:
    """Return what others report on the same data."""
    found = report.published
    if found is None:
        return []
    names = ("auroc", "accuracy", "sensitivity", "specificity")
    own = [report.model, *(to_text(report.metrics[name]) for name in names), "this report"]
    rows = [
        [one.model, *("" if getattr(one, name) is None else f"{getattr(one, name):.3f}"
                      for name in names), one.source]
        for one in found.results
    ]  # fmt: skip
    header = ["model", *(METRICS[name].title for name in names), "source"]
    return [
        f"The numbers of images are those of {found.data}. {found.note}",
        markdown_table(header, [own, *rows]),
    ]


def describe_checklist(report: Report) -> list[str]:
    """Return the items of the reporting guidelines."""
    rows = [
        [item.topic, item.tripod, item.claim, answer] for item, answer in fill_checklist(report)
    ]
    return [
        "What TRIPOD+AI (Collins et al. 2024, doi 10.1136/bmj-2023-078378) and CLAIM 2024 (Tejani "
        "et al. 2024, doi 10.1148/ryai.240300) ask for, in our words. What only people can say is "
        "left open.",
        markdown_table(["item", "TRIPOD+AI", "CLAIM 2024", "answer"], rows),
    ]


def describe_files(report: Report) -> list[str]:
    """Return what else lies in the folder."""
    return [
        "Every image's probability, decision and metadata are in `predictions.csv` and "
        "`predictions.parquet`, all numbers of this page in `report.json`."
    ]
