"""Tables go between the markers of a page."""

import pytest

from tm_jax.evaluation import tables


def test_text_between_the_markers_is_replaced_again_and_again(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("# Head\n<!-- table -->\nold\n<!-- end -->\ntail\n")
    for text in ("| a |", "| b |\n| c |"):
        tables.put(page, text)
        assert page.read_text() == f"# Head\n<!-- table -->\n{text}\n<!-- end -->\ntail\n"


@pytest.mark.parametrize("page", ["no markers", "<!-- table --> <!-- table --> <!-- end -->"])
def test_a_page_without_markers_stays_as_it_is(tmp_path, page):
    path = tmp_path / "README.md"
    path.write_text(page)
    with pytest.raises(ValueError, match="once each"):
        tables.put(path, "text")
    assert path.read_text() == page
