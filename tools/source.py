"""What a source file is made of: its tokens and its functions.

A token is a name, number, string or operator. Comments, docstrings and white space are none, so a
line that holds nothing else is no line of code. A string counts as one token whatever is in it, and
so does the file that `#include` names.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from typing import NamedTuple


class Token(NamedTuple):
    text: str
    first: int  # line, counted from 1
    last: int


class Function(NamedTuple):
    name: str
    line: int
    lines: int  # with comments and blank lines; in Python without the docstring


def tokens(suffix: str, text: str) -> list[Token]:
    return list(_python_tokens(text) if suffix == ".py" else _cpp_tokens(text))


def functions(suffix: str, text: str) -> list[Function]:
    """The functions of a file; one inside another counts towards both (in C++: towards the outer).

    A macro of C++ is a function too. The C++ must be balanced without its preprocessor lines.
    """
    return list(_python_functions(text) if suffix == ".py" else _cpp_functions(text))


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _docstring(node: ast.AST) -> range:
    """The lines of a definition's docstring."""
    if not isinstance(node, DOCUMENTED) or ast.get_docstring(node, clean=False) is None:
        return range(0)
    return range(node.body[0].lineno, node.body[0].end_lineno + 1)


def _python_tokens(text: str) -> Iterator[Token]:
    documentation = {line for node in ast.walk(ast.parse(text)) for line in _docstring(node)}
    counted = {tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP}
    # Python 3.12 splits an f-string; here it is one token everywhere.
    starts, ends = getattr(tokenize, "FSTRING_START", -1), getattr(tokenize, "FSTRING_END", -1)
    open_strings: list[int] = []  # the lines on which they begin
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        first = token.start[0]
        if token.type == starts:
            open_strings.append(first)
        elif token.type == ends:
            first = open_strings.pop()
        if not open_strings and token.type in {*counted, ends} and first not in documentation:
            yield Token(token.string, first, token.end[0])


def _python_functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno + 1 - node.lineno - len(_docstring(node))
            yield Function(node.name, node.lineno, lines)


CPP_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)
      | (?<=include\ )[<"][^>"\n]+[>"]
      | ^[ \t]*\#[ \t]*\w*
      | \w*R"(?P<raw>[^(\s]*)\(.*?\)(?P=raw)" | \w*"(?:\\.|[^"\\])*" | [LuU]?'(?:\\.|[^'\\])+'
      | [A-Za-z_]\w*
      | \.?\d(?:'?[\w.]|(?<=[eEpP])[+-])*
      | <<=|>>=|<=>|\.\.\.|->\*|::|->|\+\+|--|<<|&&|\|\||\#\#|[-+*/%&|^=!<>]=|[^\s\\]
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*(?:define[ \t]+(?P<macro>\w+))?(?:\\\n|.)*", re.MULTILINE)
SCOPES = {"namespace", "class", "struct", "union", "enum"}
# These take parentheses and are not the function's name.
ATTRIBUTES = {"__launch_bounds__", "__cluster_dims__", "__attribute__", "alignas", "decltype"}


def _cpp_tokens(text: str) -> Iterator[Token]:
    at, line = 0, 1
    for match in CPP_TOKEN.finditer(text):
        line += text.count("\n", at, match.start())
        last = line + match[0].count("\n")
        if not match["comment"]:
            yield Token(match[0].strip(), line, last)
        at, line = match.end(), last


def _cpp_functions(text: str) -> Iterator[Function]:
    for match in DIRECTIVE.finditer(text):
        if match["macro"]:
            line = text.count("\n", 0, match.start()) + 1
            yield Function(match["macro"], line, match[0].count("\n") + 1)
    text = DIRECTIVE.sub(lambda match: "\n" * match[0].count("\n"), text)
    header: list[Token] = []  # since the last declaration, scope or access specifier ended
    scopes, depth, kind = 0, 0, ""  # depth: of braces in what is no scope
    for token in _cpp_tokens(text):
        header.append(token)
        if token.text == "{" and depth == 0 and (kind := _opens(header)) == "scope":
            scopes, header = scopes + 1, []
        elif token.text == "{":
            depth += 1
        elif token.text == "}" and depth:
            depth -= 1
            if depth == 0 and kind == "function":
                yield Function(_name(header), header[0].first, token.last - header[0].first + 1)
                header = []
        elif token.text == "}":
            scopes, header = scopes - 1, []
        elif depth == 0 and (token.text == ";" or _is_access_specifier(header)):
            header = []
        if scopes < 0:
            raise ValueError(f"expected braces in balance, and line {token.first} closes one more")
    if scopes or depth:
        raise ValueError(f"expected braces in balance, and {scopes + depth} are open at the end")


def _opens(header: list[Token]) -> str:
    """What the brace at the end of `header` opens: a scope, a function or an initialiser."""
    *before, _ = _outline(header)
    if SCOPES & {*before} or (before[:1] == ["extern"] and "(" not in before):
        return "scope"
    # A brace after a name in a constructor's list initialises a member: Warp() : lanes{} {}
    member = ":" in before and before[-1] not in {")", "}"}
    return "function" if "(" in before and before[-1] != "=" and not member else "initialiser"


def _outline(header: list[Token]) -> list[str]:
    """The texts of a declaration, without what brackets and `template <...>` enclose."""
    found: list[str] = []
    depth = angles = 0
    for token in header:
        depth -= token.text in {")", "]", "}"}
        if depth == 0 and (angles or (token.text == "<" and found[-1:] == ["template"])):
            angles += (token.text == "<") - (token.text == ">")
        elif depth == 0:
            found.append(token.text)
        depth += token.text in {"(", "[", "{"} and token is not header[-1]
    return found


def _name(header: list[Token]) -> str:
    found = _outline(header)
    at = next(i for i, text in enumerate(found) if text == "(" and found[i - 1] not in ATTRIBUTES)
    if "operator" in found[:at]:
        return "operator"
    if found[at - 1] == "]":  # a lambda bears the name of what it initialises
        return found[found.index("=") - 1]
    first = at - 1
    while first > 1 and found[first - 1] == "::":
        first -= 2
    return "".join(found[first:at])


def _is_access_specifier(header: list[Token]) -> bool:
    return [token.text for token in header[1:]] == [":"]
