"""Leave one site out: train on all hospitals but one, and score that one, for each in turn."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pneumonia_hf.data.boxes import BOXES
from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.load import find_listed, load_splits, read_hospitals
from pneumonia_hf.data.pixel_store import cache_in
from pneumonia_hf.data.sources import parse_source
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.choose_images import USED, own_hashes
from pneumonia_hf.evaluation.context import EvaluationConfig
from pneumonia_hf.evaluation.evaluate import evaluate_predictor
from pneumonia_hf.files import replace_text, write_json
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.reporting.numbers import to_text
from pneumonia_hf.reporting.page import Page, Section, Table, to_markdown
from pneumonia_hf.statistics.intervals import Interval
from pneumonia_hf.training.run import number_classes
from pneumonia_hf.training.train import run_recipe

if TYPE_CHECKING:
    from pneumonia_hf.training.arguments import XrayTrainingArguments
    from pneumonia_hf.training.recipe import Recipe

TABLE_FILE, NUMBERS_FILE = "leave_one_site_out.md", "leave_one_site_out.json"
MEANING = (
    "Each row: trained on the other sites, and scored on a site that was not seen in training, at "
    "the threshold that was chosen on the validation patients of the other sites. Only such a "
    "number says what to expect of another hospital. 95% intervals are bootstrapped over patients."
)


@dataclass(frozen=True)
class LeftOut:
    """The results on a site that a model was not trained on."""

    site: str
    trained_on: tuple[str, ...]
    images: int
    auroc: Interval
    sensitivity: Interval
    specificity: Interval
    threshold: float
    model: str  # folder of the model, in the output folder


def leave_one_site_out(recipe: Recipe, arguments: XrayTrainingArguments) -> list[LeftOut]:
    """Train once for each hospital, without its sources, and score all their images; write a table.

    A source that `hospitals` of the recipe does not name is a hospital of its own. Each run is in
    its own folder, `without-SITE/`. With `arguments.resume` complete runs stay as they are. Images
    of `test_images` and `exclude_images` are neither trained on nor scored.

    Raises:
        UserError: one hospital only; a teacher, which may know the site; or as `run_recipe`.
    """
    sources: dict[str, list[str]] = {}
    hospital_of = read_hospitals(recipe.data.hospitals, recipe.data.data_dir)
    for text in recipe.data.data_dir:
        name = parse_source(text).name
        sources.setdefault(hospital_of.get(name, name), []).append(text)
    if len(sources) < 2:
        raise UserError(
            "Give sources of two hospitals or more, such as --data_dir children=A adults=B."
        )
    if arguments.teacher:
        raise UserError("Leave --teacher out: it may have seen the site that is left out.")
    if arguments.push_to_hub:
        raise UserError("Leave --push_to_hub out: these models are made to be compared.")
    if arguments.world_size > 1:
        raise UserError("Leaving out sites runs in one process; start it with python.")
    folder, found = Path(arguments.output_dir), []
    rest = {
        site: [text for text in recipe.data.data_dir if text not in own]
        for site, own in sources.items()
    }
    for site, others in rest.items():
        _check_needs(site, others, recipe, arguments)
    for site, own_sources in sources.items():
        others = rest[site]
        hospitals = [
            f"{name}={','.join(parse_source(text).name for text in texts)}"
            for name, texts in sources.items()
            if name != site
        ]
        data = replace(recipe.data, data_dir=others, hospitals=hospitals)
        own = arguments.with_changes(output_dir=str(folder / f"without-{site}"))
        print(f"Without {site}: training on {', '.join(others)}.", flush=True)
        model = run_recipe(replace(recipe, data=data), own)
        with cache_in(recipe.data.cache_dir):
            found.append(_score(model, site, own_sources, others, recipe))
        write_json(folder / NUMBERS_FILE, [asdict(one) for one in found])
        page = _to_page(found, _unscored(recipe))
        replace_text(folder / TABLE_FILE, to_markdown(page))
    return found


def _check_needs(
    site: str, others: list[str], recipe: Recipe, arguments: XrayTrainingArguments
) -> None:
    """Raise a UserError if the other sites lack what the recipe needs: before the first run."""
    from datasets import concatenate_datasets

    if not (recipe.model.other_class or arguments.box_weight):
        return
    data = concatenate_datasets(list(load_splits(others).values()))
    try:
        if recipe.model.other_class:
            number_classes(data)
    except UserError as error:
        raise UserError(f"Without {site}: {error}") from error
    if arguments.box_weight and not any(data[BOXES][:] if BOXES in data.column_names else ()):
        raise UserError(f"Without {site}: no training image has a box; leave --box_weight out.")


def _score(
    model: Path, site: str, sources: list[str], others: list[str], recipe: Recipe
) -> LeftOut:
    from datasets import concatenate_datasets

    data = concatenate_datasets(list(load_splits(sources).values()))
    if lists := _unscored(recipe):
        data = data.select(np.flatnonzero(~find_listed(data, lists)))
    predictor = Predictor.from_pretrained(model)
    is_known = np.isin(to_hex(hash_images(data)), list(own_hashes(predictor, (*USED, "test"))))
    if is_known.any():
        print(f"{is_known.sum()} images of {site} are of the other sites too, and are left out.")
        data = data.select(np.flatnonzero(~is_known))
    report = evaluate_predictor(predictor, data, site, config=EvaluationConfig(external=True))
    return LeftOut(
        site,
        tuple(parse_source(one).name for one in others),
        len(report.evaluation.labels),
        *(report.metrics[name] for name in ("auroc", "sensitivity", "specificity")),
        report.evaluation.threshold,
        model.name,
    )


def _unscored(recipe: Recipe) -> list[str]:
    """Return the lists of images that are not scored."""
    return [*(recipe.data.test_images or []), *(recipe.data.exclude_images or [])]


def _to_page(found: list[LeftOut], unscored: list[str]) -> Page:
    rows = [
        [
            one.site,
            ", ".join(one.trained_on),
            one.images,
            *map(to_text, (one.auroc, one.sensitivity, one.specificity)),
            f"{one.threshold:.3f}",
        ]
        for one in found
    ]
    header = "left out, trained on, images, AUROC, sensitivity, specificity, threshold".split(", ")
    names = " and ".join(f"`{Path(path).name}`" for path in unscored)
    excluded = f"The images of {names} were not scored." if unscored else ""
    return Page("Leave one site out", [Section("", (MEANING, Table(header, rows), excluded))])
