"""The findings that several files of tests look at."""

import pytest

from pneumonia_hf.audit.label_errors import FeatureConfig
from pneumonia_hf.audit.run import audit_sources


@pytest.fixture(scope="session")
def clean_findings(clean):
    return audit_sources(clean, FeatureConfig("pixels"))[0]
