"""What a page loads, and whether its tags balance."""

from html.parser import HTMLParser


class CheckedPage(HTMLParser):
    """A page that is read once.

    Args:
        page: the whole page.
    """

    VOID = frozenset({"meta", "img", "br", "wbr", "path"})
    LINES = frozenset({"p", "h1", "h2", "td", "th", "dt", "dd", "figcaption", "small", "title"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        """Tags that were not closed."""
        self.loads: list[str] = []
        """Everything that a browser would fetch, data URIs too."""
        self.text = ""
        """What is there to read, without tags; every paragraph and cell on a line of its own."""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and what it loads."""
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self.text += "\n" if tag in self.LINES else ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close a tag, which must be the last that was opened."""
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.text += data
