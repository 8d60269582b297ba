"""The check of a location in S3, against a server that is made up."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError

from bcl_ray.storage.s3 import access


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("NoSuchBucket", ["s ahead of the server's", "there is no bucket 'clocks'"]),
        ("RequestTimeTooSkewed", ["s ahead of the server's"]),
    ],
)
def test_a_wrong_clock_hides_no_other_problem_of_a_bucket_that_is_called_like_it(
    monkeypatch, code, words
):
    date = format_datetime(datetime.now(UTC) - timedelta(hours=1))

    def refuse(**_):
        answer = {"HTTPHeaders": {"date": date}, "HTTPStatusCode": 404}
        error = {"Code": code, "Message": "no"}
        raise ClientError({"Error": error, "ResponseMetadata": answer}, "ListObjectsV2")

    fake = SimpleNamespace(list_objects_v2=refuse)
    monkeypatch.setattr(access, "client", lambda *_, **__: fake)
    problems = access.check_access("s3://clocks/a", ["list"])
    assert len(problems) == len(words)
    assert all(word in problem for word, problem in zip(words, problems, strict=True))
