"""What tools/make_tables.py makes of a result file, on a page of its own."""

from tools import make_tables


def table_of(kind, result):
    """The text of a page with a place for `kind`, made of the folder of `result` (a path)."""
    page = result.with_name("page.md")
    page.write_text(f"before\n\n<!-- {kind}: to come -->\n<!-- end: {kind} -->\n")
    assert make_tables.main(["--results", str(result.parent), "--readme", str(page)]) == 0
    text = page.read_text()
    assert f"from bench/results ({result.name}" in text  # and the commit, where there is one
    return text
