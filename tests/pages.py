"""Pages as a browser would see them."""

import collections
import html.parser


class Reader(html.parser.HTMLParser):
    """What a browser would see of a page."""

    void = ("meta", "img", "hr")
    inline = ("bdi", "mark", "ins", "del", "small", "b", "strong", "s")

    def __init__(self, text):
        super().__init__()
        self.tags = collections.Counter()
        self.attributes = collections.defaultdict(list)
        self.told, self.open, self.styles = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        if tag not in self.inline:
            self.told.append(" ")
        if tag not in self.void:
            self.open.append(tag)
        for name, value in attributes:
            self.attributes[tag, name].append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles += data
        else:
            self.told.append(data)

    @property
    def text(self):
        return " ".join("".join(self.told).split())
