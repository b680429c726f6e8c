"""A section of the page: a heading that can be linked to, and what stands below it."""

from dataclasses import dataclass

from .markup import Html, element, join


@dataclass(frozen=True, kw_only=True)
class Section:
    """One subject."""

    name: str
    """For links."""
    title: str
    content: tuple[Html, ...]

    def draw(self) -> Html:
        """Make the element."""
        name = f"{self.name}-title"
        heading = element("h2", self.title, id=name)
        return element("section", heading, *self.content, id=self.name, aria_labelledby=name)


def contents(sections: list[Section]) -> Html:
    """Link to all sections."""
    links = (element("li", element("a", one.title, href=f"#{one.name}")) for one in sections)
    return element("nav", element("ul", *links), aria_label="Contents")


def prose(*sentences: str) -> Html:
    """Make a paragraph of sentences."""
    words = [word for sentence in sentences if sentence for word in (" ", sentence)][1:]
    return element("p", join(words))
