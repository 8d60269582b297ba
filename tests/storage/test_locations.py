"""What a path or URI means: what a person typed, or it is refused."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcl_ray.storage import files, paths, s3

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://bucket/what?/x", "has no option /x: there are endpoint_override, .*'?' .* as %3F"),
        ("s3://bucket?/x", "has no option /x: "),
        ("s3://bucket/what?", "has no option : there are"),
        ("s3://bucket/what??region=a", "has no option ?region: there are"),
        ("s3://bucket/a?region", "must give the option region one value"),
        ("s3://bucket/a?region=", "must give the option region one value"),
        ("s3://bucket/a?region=a&region=b", "must give the option region one value"),
        ("s3://bucket/a?x&region=q", "has no option x: "),
        ("s3://bucket//a", "has an empty part: remove one '/'"),
        ("s3://bucket/a//b", "has an empty part: "),
        ("s3://bucket/a//", "has an empty part: "),
        ("s3://host:9000/a", "the bucket's name must consist of letters.* AWS_ENDPOINT_URL"),
        ("s3:// bucket/a", "the bucket's name must consist of letters"),
        ("file:///data/what?/x", "must be file:///PATH, with a '?' in it as %3F"),
        ("file:///data/a#b/x", "must be file:///PATH, "),
        ("file://host/data", "must be file:///PATH, "),
        ("gs://bucket/a#b", "write '#' as %23"),
        ("s3:/bucket/a", "write s3://, or ./s3:/bucket/a"),
        ("file:/data", "write file://, or "),
        ("~nobody-of-this-name/x", "there is no such home: write the whole path"),
    ],
)
def test_what_would_be_read_otherwise_than_it_is_written_is_refused(uri, message):
    pattern = re.escape(uri) + ".*" + message.replace("?", r"\?").replace("(", r"\(")
    with pytest.raises(ValueError, match=pattern):
        files.resolve(uri)


@pytest.mark.parametrize("name", ["a b", "ü", "100%", "[x]", "what?", "a#b", "%41", "a;b&c=d"])
def test_a_file_has_its_name_by_path_and_by_file_uri(tmp_path, name):
    for root in (str(tmp_path), f"file://{tmp_path}", f"file://localhost{tmp_path}"):
        uri = files.file_in(root, f"{name}/{len(root)}")
        files.write_bytes(uri, uri.encode())
        assert (tmp_path / name / str(len(root))).read_bytes() == uri.encode()
        assert files.read_bytes(uri) == uri.encode()
    assert len(list(files.walk(f"file://{tmp_path}"))) == 3


@pytest.mark.parametrize("path", ["p?/x", "p#/x", "p%20/x", "p//x", "s3:x", "a:/b"])
def test_a_path_is_taken_as_it_is(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    files.write_bytes(path, b"1")
    assert Path(path).read_bytes() == b"1"


@given(TEXT)
def test_the_uri_of_any_key_leads_to_the_key(name):
    uri = files.file_in("s3://bucket/folder?region=r", name)
    location = s3.parse_uri(uri)
    assert (location.bucket, location.key) == ("bucket", f"folder/{name}")
    assert location.options == (("region", "r"),)


@given(st.lists(TEXT.filter(lambda part: "/" not in part), min_size=1))
def test_the_uri_of_any_local_file_leads_to_the_file(parts):
    assert paths.local(files.file_in("file:///folder", "/".join(parts))) == "/folder/" + "/".join(
        parts
    )


@given(TEXT)
def test_nothing_of_an_s3_uri_is_dropped(text):
    try:
        location = s3.parse_uri(f"s3://bucket/{text}")
    except ValueError:
        return
    assert location.options or location.key == unquote(text.removesuffix("/"))
