"""Values in templates: quoting, and values that are missing."""

import jinja2
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bcl_ray.ops.manifests import templating

TEXT = st.text(st.characters(codec="utf-8"))


@settings(deadline=None)
@given(TEXT | st.booleans() | st.integers() | st.none() | st.dictionaries(TEXT, TEXT))
def test_a_value_reads_back_in_a_block_and_between_brackets(value):
    text = templating.to_yaml(value)
    assert "\n" not in text
    document = f"block:\n  - key: {text}\nflow: {{ list: [{text}, 1], key: {text} }}\n"
    expected = {"block": [{"key": value}], "flow": {"list": [value, 1], "key": value}}
    assert yaml.safe_load(document) == expected


@pytest.mark.parametrize("text", ["yes", "007", "null", "1e3", "a: b", "a #b", "[x", "{{ x }}", ""])
def test_text_stays_text(text):
    assert yaml.safe_load(f"key: {templating.to_yaml(text)}") == {"key": text}


def test_a_value_that_is_missing_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "a.yaml.j2").write_text("key: {{ job.retires | yaml }}\n")
    monkeypatch.setattr(templating, "FOLDER", tmp_path)
    templating._environment.cache_clear()
    try:
        with pytest.raises(jinja2.UndefinedError, match="retires"):
            templating.render_template("a.yaml", job={"retries": 3})
    finally:
        templating._environment.cache_clear()
