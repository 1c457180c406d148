"""report_on: models and sources as a user names them -> a report in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pneumonia_hf.data.folder_source import list_others
from pneumonia_hf.data.sources import parse_source
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation.choose_images import choose_split, leave_out_used, select_listed
from pneumonia_hf.evaluation.context import EvaluationConfig
from pneumonia_hf.evaluation.evaluate import evaluate_predictor
from pneumonia_hf.evaluation.report import Report, write_report
from pneumonia_hf.evaluation.scores import identify
from pneumonia_hf.evaluation.sections.sites import load_site
from pneumonia_hf.evaluation.steps import Steps
from pneumonia_hf.files import expand
from pneumonia_hf.inference.predictor import Predictor
from pneumonia_hf.models.model_folder import ENSEMBLE_FILE, check_model_folder

if TYPE_CHECKING:
    from accelerate import PartialState


@dataclass(frozen=True)
class ModelInputs:
    """The models of a report."""

    models: tuple[str, ...]  # folders or Hub ids; several form an ensemble
    positive_label: tuple[str, ...] = ("PNEUMONIA",)  # of all models, or of each
    tta: bool = False
    compare: str | None = None  # a second model
    compare_positive_label: str = "PNEUMONIA"


@dataclass(frozen=True)
class DataInputs:
    """The data of a report."""

    data_dir: tuple[str, ...]  # sources, each [NAME=][KIND:]WHERE
    name: str | None = None  # of the data, in the report
    split: str | None = None
    images: str | None = None  # a file of hashes: only these images
    other_classes: tuple[str, ...] = ()  # folders of images of neither class
    sites: tuple[str, ...] = ()  # further sources


def report_on(
    models: ModelInputs,
    inputs: DataInputs,
    config: EvaluationConfig,
    folder: Path,
    state: PartialState | None = None,
) -> Report:
    """Score models on data, and write the report into `folder`.

    What was computed before an interruption is kept in `folder`, and used by the next call
    with the same model and images.

    Args:
        models, inputs: the models and the data.
        config: what to measure.
        folder: of the report.
        state: of a launcher's processes, which share the scoring; the main one alone writes.

    Raises:
        UserError: as of the functions that it calls.
    """
    sources = [parse_source(one) for one in inputs.data_dir]
    others = []
    if inputs.other_classes:
        if len(sources) > 1 or not sources[0].is_folder:
            raise UserError("--other_classes needs one folder as --data_dir.")
        wanted = inputs.other_classes
        if inputs.sites:  # they may have folders that this data lacks
            wanted = [one for one in wanted if (expand(sources[0].where) / one).is_dir()]
        others = list_others(sources[0].where, wanted)
    device = str(state.device) if state else None
    predictor = Predictor.from_pretrained(
        models.models, device=device, tta=models.tta, positive_label=models.positive_label
    )
    split, data = choose_split(
        inputs.data_dir, inputs.split, predictor, config.strict, inputs.other_classes
    )
    if inputs.images:
        data, others = select_listed(data, others, inputs.images)
    others = leave_out_used(others, predictor)
    # Before anything is scored, so that a mistake shows at once.
    sites = tuple(load_site(one, predictor, inputs.other_classes) for one in inputs.sites)
    second = None
    if models.compare:
        second = Predictor.from_pretrained(
            models.compare,
            device=device,
            tta=models.tta,
            positive_label=models.compare_positive_label,
            flags=("--compare", "--compare_positive_label"),
        )
    kept = folder / ".steps"
    steps = Steps(kept, identify(predictor, data), state)
    name = inputs.name or " + ".join(one.name for one in sources)
    report = evaluate_predictor(predictor, data, name, split, config, others, steps, sites, second)
    if steps.is_main:
        write_report(report, folder)
    steps.remove()
    return report


def check_card(models: tuple[str, ...], tta: bool) -> Path:
    """Return the folder of a model whose card may take the numbers of a report.

    Raises:
        UserError: several models or an ensemble, which have no card; test-time augmentation,
            which is off by default in use; not a saved model folder of the user's own.
    """
    folder = Path(models[0])
    if len(models) > 1 or (folder / ENSEMBLE_FILE).exists():
        raise UserError("An ensemble has no card; leave --add_to_card out.")
    if tta:
        raise UserError(
            "The card holds scores without test-time augmentation; leave --add_to_card or --tta "
            "out."
        )
    check_model_folder(folder)
    return folder
