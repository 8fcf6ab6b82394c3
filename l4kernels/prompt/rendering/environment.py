"""jinja2 as Hugging Face sets it up for chat templates, with literals that are marked."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from itertools import count
from string import Formatter
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import pass_eval_context

# Relative: the renderer's process imports this folder alone, without the package around it.
from .marked import Marked, MarkedMarkup, confirmed, is_trusted, marked, pure, trusted


class LiteralGenerator(CodeGenerator):
    """Compiles the template's own text, and nothing else, to trusted text."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            self.write(f"environment.literal({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.literal({super()._output_const_repr(group)})"

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)  # escapes
            return
        self.write("environment.concat(map(str, (")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write(")))")


class Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it only passes by."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_text")
        block = nodes.CallBlock(call, [], [], body)
        block.set_lineno(line)
        return block

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()


class MarkedFormatter(SandboxedFormatter):
    """`str.format` that keeps the marks of a trusted format and of what goes into it whole."""

    def vformat(self, form: str, args: Any, kwargs: Any) -> str:
        text = super().vformat(form, args, kwargs)
        if not is_trusted(form) or "{" in "".join(f[2] or "" for f in self.parse(form)):
            return text
        return confirmed(text, self._pieces(form, args, kwargs))

    def _pieces(self, form: str, args: Any, kwargs: Any) -> Iterator[str]:
        numbers = count()
        for literal, field, spec, conversion in Formatter.parse(self, form):
            yield trusted(literal)
            if field is None:
                continue
            if not field or field[0] in ".[":
                field = f"{next(numbers)}{field}"
            value, _ = self.get_field(field, args, kwargs)
            whole = isinstance(value, str) and not spec and not conversion
            value = value if whole else self.convert_field(value, conversion)
            yield value if whole else self.format_field(value, spec or "")


class Sandbox(ImmutableSandboxedEnvironment):
    """Literals are trusted, and every method of a text keeps the marks of its arguments."""

    code_generator_class = LiteralGenerator
    concat = staticmethod(Marked().join)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            # Constants that jinja folds itself would be literals of another type than text.
            optimized=False,
            extensions=[Generation, "jinja2.ext.loopcontrols"],
        )
        self.literal = cache(trusted)
        self.filters |= {"tojson": pure(_tojson), "safe": MarkedMarkup}
        self.filters |= {"join": _join, "replace": _replace, "indent": _indent}
        self.filters |= {"title": pure(FILTERS["title"])}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def getattr(self, obj: Any, attribute: str) -> Any:
        return super().getattr(marked(obj), attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(marked(obj), argument)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is None or type(value.__self__) is not Marked:
            return wrapped
        form, by_mapping = value.__self__, value.__name__ == "format_map"

        def call(*args: Any, **kwargs: Any) -> str:
            wrapped(*args, **kwargs)  # checks the arguments
            args, kwargs = ((), args[0]) if by_mapping else (args, kwargs)
            return MarkedFormatter(self).vformat(form, args, kwargs)

        return call


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@pass_eval_context
def _join(eval_ctx: Any, value: Any, d: str = "", attribute: Any = None) -> str:
    text: str = FILTERS["join"](eval_ctx, value, marked(d), attribute)
    return text


@pass_eval_context
def _replace(eval_ctx: Any, s: str, old: str, new: str, count: int | None = None) -> str:
    text: str = FILTERS["replace"](eval_ctx, marked(s), old, new, count)
    return text


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text: str = FILTERS["indent"](s, width, first, blank)
    if type(s) is not Marked:
        return text
    space = width if isinstance(width, str) else " " * width
    head, *rest = (s + "\n").splitlines()
    rest = [marked(space) + line if line or blank else line for line in rest]
    return confirmed(text, [space * bool(first) + head, *rest], "\n")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
