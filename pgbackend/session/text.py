"""Find the effect of a text of SQL on the session that it is sent to.

`effect_of` reads a text as the server's own lexer does: it masks literals, comments and quoted
identifiers, and searches the rest for statements and functions whose effect lives in the session.
Each step takes time proportional to the length of the text.

Source: https://www.postgresql.org/docs/current/sql-syntax-lexical.html
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from .masking import Masked, compiled
from .words import can_follow_others, is_plain


class Effect(NamedTuple):
    """The effect of a text on its session."""

    # Whether losing the effect would cause no error: a setting, a role, a lock, LISTEN.
    silent: bool = False
    # Whether losing the effect would cause an error (a temporary table, a prepared statement), or
    # whether it removes what the session began with (RESET). Such an effect may be meant for a
    # transaction only.
    loud: bool = False
    # Whether the effect depends on parameters that are not in the text.
    depends: bool = False
    # Whether the text calls only harmless functions, and so leaves the session as it was.
    plain: bool = False
    # Whether the text may follow others in one message, as a part of their transaction.
    can_follow: bool = False
    # Whether the text changes a setting, at least for the rest of the transaction.
    sets: bool = False

    @property
    def lasts(self) -> bool:
        """Whether the effect lives in the session."""
        return self.silent or self.loud


# Longer texts are read anew each time, and their functions are not looked up: checking that all of
# them are harmless takes as long as resetting the session.
_LONG = 4000


def effect_of(sql: str, *, backslashes: bool = False) -> Effect:
    """Return the effect of the statements of *sql* on their session.

    *backslashes* says that backslashes are escapes in plain literals, too: the server's setting
    ``standard_conforming_strings`` is off.
    """
    return (_cached_effect_of if len(sql) <= _LONG else _effect_of)(sql, backslashes)


def _effect_of(sql: str, backslashes: bool) -> Effect:
    return _Text(sql, backslashes).effect()


_cached_effect_of = lru_cache(maxsize=2000)(_effect_of)


def local_settings(sql: str, *, backslashes: bool = False) -> int:
    """Return how many statements end with the transaction, though the server answers SET."""
    return len(_LOCAL.findall(_Text(sql, backslashes).code))


def masked(sql: str) -> str:
    """Return *sql* with a quote in place of each literal, comment and quoted identifier."""
    return ";" + Masked(sql, backslashes=False).code


_START = r""";[\s'(]*+
    (?:explain\b@(?:\([^();]*+\)@|(?:analy[sz]e|verbose)\b@)*+\(*+@)?+"""

_SILENT = r"""set\b (?!@(?:local|transaction|constraints)\b(?!@\.))
    | listen\b"""
_LOUD = r"""load\b | reset\b | discard~all\b | prepare\b (?!~transaction\b)
    | create~(?:or~replace~)?(?:(?:global|local)~)?temp(?:orary)?\b
        (?![^;]*\bon~commit~drop\b)"""
_STARTS = compiled(rf"{_START} (?: (?P<silent>{_SILENT}) | (?P<loud>{_LOUD}) | (?P<do>do\b) )")
_SILENT_STARTS = compiled(rf"{_START} (?: {_SILENT} )")
_LOUD_STARTS = compiled(rf"{_START} (?: {_LOUD} )")
_SETS = compiled(rf"{_START} (?:set|reset|discard)\b | \bset_config\b")
_HOLD = compiled(rf"{_START} declare\b[^;]*?\bcursor~with~hold\b")
_LOCAL = compiled(r";@set~(?:local|transaction)\b")
_DO = compiled(rf"{_START} do\b([^;]*+)")
_INTO_TEMP = compiled(
    r"""into~(?: (?:(?:global|local)~)?temp(?:orary)?~(?!from\b|values\b|select\b|where\b)[\w'(]
              | (?:(?:unlogged~)?table~)?pg_temp(?:_\d+)?@\. )"""
)
_CREATE_TEMP = compiled(rf"{_START} create\b[^;]*?\bpg_temp(?:_\d+)?@\.")
# Matches a path on which an object without a schema's name becomes temporary, also in a literal.
_TEMPORARY_PATH = compiled(r"""search_path["\s']*+(?:=|\bto\b|,)["\s']*+pg_temp\b""")
_MAKES = re.compile(r"\b(?:create|into)\b")
_UPDATE_SETTINGS = compiled(r"update~(?:only~)?(?:pg_catalog@\.@)?pg_settings\b")

_LOCKS = compiled(r"advisory_lock(?:_shared)?@\(")
_SET_OTHERS = compiled(r"\b(?:setseed|set_limit|pg_replication_origin_session_setup)@\(")
_CONNECT = compiled(r"\bdblink_connect(?:_u)?@\(")

_TRUE = r"true@(?:::@bool(?:ean)?@)?"
_ARGUMENT = r"(?:[^(),]++|\([^()]*+\))*+,"
# Match a call of set_config() that may outlast the transaction, as far as the text shows. The first
# pattern is faster; the second also handles calls in arguments.
_NOT_SIMPLE = compiled(rf"set_config@\((?![^(),]*+,[^(),]*+,@{_TRUE}\))")
_SET_CONFIG = compiled(rf"set_config@\((?!{_ARGUMENT}{_ARGUMENT}@{_TRUE}\))")
_IS_TRUE = compiled(rf"@(?:{_TRUE}|1@::@bool(?:ean)?@)")
_IS_LITERAL = compiled(r"\s*+(?:bool(?:ean)?\s*+)?'+\s*+(?:::\s*+bool(?:ean)?\s*+)?")
_IS_NULL = compiled(r"@null@(?:::@text@)?")
_IS_PARAMETER = compiled(r"@(?:%[sbt]|%\(\w+\)[sbt]|\$\d+)@(?:::@bool(?:ean)?@)?")
_IS_LOCAL = compiled(r"@is_local@(?:=>|:=)")
_WORDS_FOR_TRUE = frozenset({"t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"})
_MARKS = re.compile(r"[(),]")

# Matches definitions, whose code runs only later, if at all.
_DEFINITIONS = compiled(
    r"""; [\s'(]*+ create~(?:or~replace~)?(?:(?:temp(?:orary)?|recursive)~)*+
        (?: (?:function|procedure)\b[^;]*?\bbegin~atomic\b.*?(?:;@end\b|\Z)
          | (?:function|procedure|view|rule|policy|trigger|event)\b[^;]*+ )"""
)

# In the procedural language of a DO block, a statement may also follow these words.
_BEFORE_STATEMENTS = re.compile(r"\b(?:begin|then|else|loop)\b")

# How deep literals in blocks are searched for blocks; a deeper one may do anything.
_DEEP = 4


class _Text(Masked):
    """A text whose effect is determined; *depth* is the number of literals around it."""

    def __init__(
        self, text: str, backslashes: bool, *, procedural: bool = False, depth: int = 0
    ) -> None:
        super().__init__(text, backslashes)
        self._depth = depth
        code = _BEFORE_STATEMENTS.sub(";", self.code) if procedural else self.code
        # A statement begins after a semicolon, so put one before the first statement, too.
        self.code = ";" + code

    def effect(self) -> Effect:
        code = self.code
        if self.any_name:
            return Effect(silent=True)
        silent = loud = depends = False
        blocks: list[str] = []
        if (start := _STARTS.search(code)) is not None:
            silent = _SILENT_STARTS.search(code) is not None
            loud = start.lastgroup == "loud" or _LOUD_STARTS.search(code) is not None
            blocks = _DO.findall(code)
        if not loud:
            loud = self._makes_temporary() or ("hold" in code and _HOLD.search(code) is not None)
        if not silent:
            silent, depends, called_loudly = self._functions()
            loud = loud or called_loudly
        if blocks and not silent:
            inner = self._blocks()
            silent, loud = inner.silent, loud or inner.loud
            depends = depends or inner.depends or any("%" in each for each in blocks)
        plain = not (silent or loud or depends) and len(code) <= _LONG and is_plain(code)
        can_follow = not (silent or loud) and can_follow_others(code)
        sets = ("set" in code or "discard" in code) and _SETS.search(code) is not None
        return Effect(silent, loud, depends, plain, can_follow, sets)

    def _makes_temporary(self) -> bool:
        code = self.code
        if "search_path" in code or "set_config" in code:
            lowered = self.text.lower()
            for each in (code, lowered) if "pg_temp" in lowered else ():
                if (path := _TEMPORARY_PATH.search(each)) and _MAKES.search(each, path.end()):
                    return True
        if "temp" not in code:
            return False
        for found in _INTO_TEMP.finditer(code):
            end = found.start()
            while code[end - 1] in " \t\n\r\f\v'":
                end -= 1
            if not code[max(0, end - 6) : end].endswith(("insert", "merge")):
                return True
        return "pg_temp" in code and _CREATE_TEMP.search(code) is not None

    def _functions(self) -> tuple[bool, bool, bool]:
        """Return whether functions have silent effects, parameter-dependent ones, and loud ones.

        Only calls count, not the code of definitions.
        """
        code = self.code
        # Most of these names contain "set", which is quick to check.
        sets = "set" in code
        settings = sets and "set_config" in code
        others = sets and ("setseed" in code or "set_limit" in code or "session_setup" in code)
        updates = sets and "pg_settings" in code
        locks, connects = "advisory_lock" in code, "dblink_connect" in code
        if not (settings or others or updates or locks or connects):
            return False, False, False
        if _DEFINITIONS.search(code):
            # Keep the number of quotes, since `_all_say_true` counts them.
            code = _DEFINITIONS.sub(lambda found: ";" + "'" * found.group().count("'"), code)
        silent = depends = resets = False
        if settings and _NOT_SIMPLE.search(code):
            silent, depends, resets = self._settings(code)
        return (
            silent
            or (locks and _LOCKS.search(code) is not None)
            or (updates and _UPDATE_SETTINGS.search(code) is not None)
            or (others and _SET_OTHERS.search(code) is not None),
            depends,
            resets or (connects and _CONNECT.search(code) is not None),
        )

    def _settings(self, code: str) -> tuple[bool, bool, bool]:
        """Return whether set_config() makes lasting settings, depends on parameters, or resets.

        A NULL value sets the default again, as RESET does.
        """
        # Limit the work: nested calls in arguments are read again and again.
        budget = 4 * len(code) + 10_000
        literals: list[tuple[int, int]] = []
        resets = False
        for found in _SET_CONFIG.finditer(code):
            arguments, end = _arguments(code, found.end(), budget)
            budget -= end - found.end()
            if len(arguments) != 3:  # name, value, is_local
                return True, False, False
            begin, end = next(
                (span for span in arguments if _IS_LOCAL.match(code, *span)), arguments[2]
            )
            if named := _IS_LOCAL.match(code, begin, end):
                begin = named.end()
            if _IS_TRUE.fullmatch(code, begin, end):
                continue
            if _IS_PARAMETER.fullmatch(code, begin, end):
                # The whole text is inspected again once the parameters are merged into it.
                return False, True, resets
            if _IS_LITERAL.fullmatch(code, begin, end):
                literals.append((begin, end))
            elif _IS_NULL.fullmatch(code, *arguments[1]):
                resets = True
            else:
                return True, False, False
        return not self._all_say_true(code, literals), False, resets

    def _all_say_true(self, code: str, spans: list[tuple[int, int]]) -> bool:
        """Return whether the literals at *spans*, in their order, all mean true."""
        masked = self.masked() if spans else []
        position = count = 0
        for begin, end in spans:
            count += code.count("'", position, begin)
            inside = code.count("'", begin, end)
            literals = [each for each in masked[count : count + inside] if each[0] == "'"]
            if len(literals) != 1 or literals[0].strip("'").strip().lower() not in _WORDS_FOR_TRUE:
                return False
            position, count = end, count + inside
        return True

    def _blocks(self) -> Effect:
        """Return the effect of the blocks of DO statements, including blocks in their strings."""
        if self._depth >= _DEEP:
            return Effect(silent=True)
        silent = loud = depends = False
        blocks = list(_DO.finditer(self.code))
        begins = [found.start(1) for found in blocks]
        languages = [_LANGUAGE.search(found.group(1)) for found in blocks]
        for place, body in self.literals():
            number = bisect_right(begins, place) - 1
            if number < 0 or place >= blocks[number].end():
                continue
            language = languages[number]
            inner = _Text(body, self.backslashes, procedural=True, depth=self._depth + 1)
            effects = [inner.effect()]
            if language and language.group(1) != "plpgsql":
                silent = silent or _OF_OTHER_LANGUAGES.search(body.lower()) is not None
            elif "execute" in inner.code:
                effects += inner.executed()
            for effect in effects:
                silent, loud = silent or effect.silent, loud or effect.loud
            depends = depends or effects[0].depends
        return Effect(silent=silent, loud=loud, depends=depends)

    def executed(self) -> Iterator[Effect]:
        """Yield the effect that each literal would have if it were executed."""
        for _, sql in self.literals():
            yield _Text(sql, self.backslashes, depth=self._depth + 1).effect()


_LANGUAGE = compiled(r"\blanguage~(\w*)")

# Matches suspicious words in a block of a language that is not parsed here.
_OF_OTHER_LANGUAGES = re.compile(
    r"\b(?:re)?set\b|\bset_config\b|\blisten\b|\bprepare\b|\btemp|advisory_lock|\bdiscard\b"
)


def _arguments(code: str, position: int, budget: int) -> tuple[list[tuple[int, int]], int]:
    """Return the spans of a call's arguments, and the call's end.

    The opening parenthesis is just before *position*. Return no arguments if the call does not end
    within *budget* characters.
    """
    spans, begin, depth = [], position, 0
    for found in _MARKS.finditer(code, position, position + max(0, budget)):
        mark = found.group()
        if mark == "(":
            depth += 1
        elif mark == ")" and depth:
            depth -= 1
        elif not depth:
            spans.append((begin, found.start()))
            begin = found.end()
            if mark == ")":
                return spans, found.end()
    return [], len(code)
