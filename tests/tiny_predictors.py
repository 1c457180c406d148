"""Predictors of tiny networks whose head can be set, for tests of attribution maps."""

import torch
from helpers import TINY_SIZES, draw_xray
from PIL import Image
from transformers import AutoModelForImageClassification, TimmWrapperConfig

from pneumonia_hf import Predictor
from pneumonia_hf.inference.network import Network
from pneumonia_hf.models.backbones import head_of
from pneumonia_hf.models.build import ModelConfig, build_model

IMAGE = draw_xray(2, ill=True, size=(150, 100))


def make_predictor(name: str, body: object, size: int | None = None) -> Predictor:
    torch.manual_seed(0)
    return Predictor(Network(*build_model(ModelConfig(name, str(body), size or TINY_SIZES[name]))))


def score_more(predictor: Predictor, plain: Image.Image, *shown: Image.Image) -> None:
    """Set the head so that the logit of PNEUMONIA is 0 for `plain` and grows towards `shown`."""
    head = head_of(predictor.network.model)
    seen = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        predictor.network.model(pixel_values=predictor.network.pixel_values([plain, *shown]))
        hook.remove()
        (features,) = seen
        origin, direction = features[0], features[1:].mean(dim=0) - features[0]
        direction -= (direction @ origin) / (origin @ origin) * origin
        head.bias.zero_()
        head.weight.zero_()
        head.weight[predictor.network.class_index] = direction / direction.norm()


def save_timm(architecture: str, settings: dict | None, folder: object) -> None:
    config = TimmWrapperConfig(architecture=architecture, model_args=settings, num_labels=2)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
