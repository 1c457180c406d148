import json
import math

from pneumonia_hf.files import write_json


def test_numbers_that_json_lacks_are_written_as_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [math.nan, 1.5], "b": {"c": math.inf}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": {"c": None}}
