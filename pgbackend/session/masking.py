"""The text of SQL with literals, comments and quoted identifiers masked, as the server reads it.

Source: https://www.postgresql.org/docs/current/sql-syntax-lexical.html
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

# A literal, comment or quoted identifier becomes one quote. Patterns then treat a quote as a space,
# since no literal stands between the words that they look for.


def _comment(depth: int) -> str:
    inner = f"|{_comment(depth - 1)}" if depth else ""
    return rf"/\*(?:[^*/]++|\*(?!/)|/(?!\*){inner})*+\*/"


# For the server, every character beyond ASCII may be part of a name. So these sets say what of
# ASCII may not: all but letters, digits, "_" and, in names, "$". A set with a range beyond U+00FF,
# of which the patterns here would have twelve, takes milliseconds to compile.
_OF_TAGS = r"[^\x00-/:-@\[-^`{-\x7f]"
_OF_NAMES = r"[^\x00-#%-/:-@\[-^`{-\x7f]"

# A literal may continue after the end of a line, with escapes if it began with them.
_GAP = r"(?:[^\S\n\r]++|--[^\n\r]*+)*+[\n\r](?:\s++|--[^\n\r]*+[\n\r])*+"

_ESCAPED = r"'(?:[^'\\]++|\\.|'')*+'?"

_WITH_ESCAPES = rf"(?<!{_OF_NAMES})[eE]{_ESCAPED}(?:{_GAP}{_ESCAPED})*+"

_UNICODE = rf"(?<!{_OF_NAMES})[uU]&'(?:[^']++|''|'{_GAP}')*+'?"

_OTHERS = rf"""'[^']*+'?|"[^"]*+"?|--[^\n\r]*+|{_comment(2)}"""

_DOLLARS = (
    rf"(?<!{_OF_NAMES})\$(?P<tag>(?:(?!\d){_OF_TAGS}++)?+)\$"
    r"(?:(?:[^$]++|\$(?!(?P=tag)\$))*+\$(?P=tag)\$|.*+)"
)

# Patterns by the content of the text: with dollar quotes or without; with escapes in E'' and U&'',
# with backslashes in every literal, or without.
_MASKED = {
    (dollars, escapes): re.compile(
        "|".join(
            [_DOLLARS] * dollars
            + [_WITH_ESCAPES, _UNICODE] * (escapes == "e")
            + [_ESCAPED] * (escapes == "all")
            + [_OTHERS]
        ),
        re.DOTALL,
    )
    for dollars in (False, True)
    for escapes in ("", "e", "all")
}

_COMMENT_MARKS = re.compile(r"/\*|\*/")

# Names that are searched for may also be written in quotes.
_QUOTED_NAMES = re.compile(
    r'"(set_config|set_limit|setseed|dblink_connect(?:_u)?|pg_settings|pg_temp(?:_\d+)?'
    r'|pg_(?:try_)?advisory_lock(?:_shared)?|pg_replication_origin_session_setup)"'
)

_QUOTES = re.compile("'")

# No part of a name, and no parameter as $1.
_NUMBERS = re.compile(r"(?<![\w$])(?:\d[\w.]*|\.\d[\w.]*)")

_BLANKS = " \t\n\r\f\v'"

_ESCAPES = re.compile(
    rf"""\\(?: x([0-9a-fA-F]{{1,2}}) | u([0-9a-fA-F]{{4}}) | U([0-9a-fA-F]{{8}})
            | ([0-7]{{1,3}}) | (.) )
        | '(?:{_GAP})?'""",
    re.DOTALL | re.VERBOSE,
)

_CONTROLS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class Masked:
    """A text, and its code: the text in lower case with its literals masked."""

    def __init__(self, text: str, backslashes: bool) -> None:
        lowered = text.lower()
        # An identifier written with escapes may be any name.
        self.any_name = 'u&"' in lowered and ("\\" in text or "uescape" in lowered)
        if '"' in text:
            text = _QUOTED_NAMES.sub(r"\1", text)
        escapes = ""
        if "\\" in text and (backslashes or "e'" in lowered):
            escapes = "all" if backslashes else "e"
        elif "u&'" in lowered:
            escapes = "e"
        # Keep the original case: an escape in a capital letter means something else, and so do the
        # tags of dollar quotes.
        self.text = text
        self.backslashes = backslashes
        dollars = "$" in text
        self._pattern = _MASKED[dollars, escapes]
        if dollars:
            code = self._pattern.sub("'", text)
        elif not escapes and not any(each in text for each in ('"', "--", "/*")):
            # Only literals are masked: the code between them is every second part.
            parts = text.split("'")
            code = "'".join([*parts[::2], ""] if len(parts) % 2 == 0 else parts[::2])
        else:
            code = "'".join(self._pattern.split(text))
        self._deep = "/*" in code
        if self._deep:
            code = "'".join(each for each, _ in self._pieces())
        self.code = code.lower()

    def _pieces(self) -> Iterator[tuple[str, str]]:
        """Yield the parts between masked tokens, each with the token that follows it."""
        text, begin, position = self.text, 0, 0
        pattern = re.compile(rf"{self._pattern.pattern}|/\*", re.DOTALL)
        while found := pattern.search(text, position):
            end = found.end()
            if found.group() == "/*":
                # The comment has many others inside it, or no end.
                end = _comment_end(text, end)
            yield text[begin : found.start()], text[found.start() : end]
            begin = position = end
        yield text[begin:], ""

    def masked(self) -> list[str]:
        """Return the masked tokens, in the order of the quotes in `code`."""
        if self._deep:
            return [each for _, each in self._pieces() if each]
        return [found.group() for found in self._pattern.finditer(self.text)]

    def without_values(self) -> str:
        """Return the text for a reader: ``…`` for each literal and number, and no comments.

        Where a backslash may end a literal or not, what follows the first quote is left out: the
        server knows which, and the text does not tell.
        """
        found = []
        for code, token in self._pieces():
            found.append(_NUMBERS.sub("…", code))
            if token.startswith('"'):
                found.append(token)
            elif not token.startswith(("--", "/*")):
                if "\\" in self.text:
                    found.append("'…")
                    break
                found.append("'…'" if token else "")
        # A literal with quotes in it is several tokens.
        return re.sub("'…'(?:'…')+", "'…'", "".join(found))

    def literals(self) -> Iterator[tuple[int, str]]:
        """Yield the literals without escapes, each with its position in `code`."""
        code = self.code
        begin, end = 0, 0
        held: list[str] = []
        places = [found.start() for found in _QUOTES.finditer(code)]
        for place, token in zip(places, self.masked(), strict=False):
            if token.startswith(("--", "/*", '"')):
                continue
            if held:
                between = code[end:place]
                words = between.strip(_BLANKS)
                if words == "uescape" and held[0][0] in "uU":
                    yield begin, _content(held[0], self.backslashes, token[1:2] or "\\")
                    held = []
                    continue
                if token[0] == held[0][0] == "'" and not words:
                    goes_on = "\n" in between or "\r" in between
                    if goes_on:
                        held[-1] = held[-1].removesuffix("'")
                    if goes_on or not between:
                        held.append(token[1:] if goes_on else token)
                        end = place + 1
                        continue
                yield begin, _content("".join(held), self.backslashes)
            begin, end, held = place, place + 1, [token]
        if held:
            yield begin, _content("".join(held), self.backslashes)


def _content(literal: str, backslashes: bool, mark: str = "\\") -> str:
    """Return the text between the quotes, or the dollar tags, of a literal, without escapes.

    *mark* is the escape character of a U&'' literal.
    """
    if literal.startswith("$"):
        length = literal.index("$", 1) + 1
        return literal[length : max(length, len(literal) - length)]
    begin = literal.find("'") + 1
    inside = literal[begin:].removesuffix("'")
    if literal[0] in "uU":
        escape = re.escape(mark)
        return re.sub(
            rf"{escape}(?:([0-9a-fA-F]{{4}})|\+([0-9a-fA-F]{{6}})|({escape}))|'(?:{_GAP})?'",
            lambda found: found[3] or _unescaped(found, found[1] or found[2], 16),
            inside,
        )
    if literal[0] in "eE" or (backslashes and "\\" in inside):
        return _ESCAPES.sub(
            lambda found: (
                _CONTROLS.get(found[5], found[5])
                if found[5]
                else _unescaped(found, found[4], 8)
                if found[4]
                else _unescaped(found, found[1] or found[2] or found[3], 16)
            ),
            inside,
        )
    return inside.replace("''", "'")


def _unescaped(found: re.Match[str], digits: str | None, base: int) -> str:
    """Return an escape's character; without digits, a quote for two quotes, else nothing."""
    if digits:
        number = int(digits, base)
        return chr(number) if number <= sys.maxunicode else "\ufffd"
    return "'" if found.group() == "''" else ""


def _comment_end(text: str, position: int) -> int:
    """Return the end of a comment that began before *position*, nested comments included."""
    depth = 1
    for found in _COMMENT_MARKS.finditer(text, position):
        depth += 1 if found.group() == "/*" else -1
        if depth == 0:
            return found.end()
    return len(text)


def compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern in which ~ stands for required space, and @ for optional space."""
    return re.compile(
        pattern.replace("~", r"(?:[\s']++)").replace("@", r"(?:[\s']*+)"), re.VERBOSE | re.DOTALL
    )
