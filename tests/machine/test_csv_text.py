import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from bcl_ray.machine.csv_text import csv_text

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2)))
def test_any_text_is_read_back_as_it_was(rows):
    text = csv_text(rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows


def test_lines_end_with_a_line_feed_and_only_what_must_be_is_quoted():
    assert csv_text([["a b", 1, 0.5, None], ["=1", "x,y", "p\rq", ""]]) == (
        'a b,1,0.5,\n=1,"x,y","p\rq",\n'
    )
