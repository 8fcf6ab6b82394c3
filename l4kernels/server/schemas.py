"""JSON Schema from outside: what the grammar compiler keeps in full; all else is refused by name.

The compiler (llguidance) ignores what it does not know, as JSON Schema has it. A client that asks
for `"uniqueItems"` or misspells `"maxLenght"` would get answers that break its schema, so the
keywords are checked here first.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import unquote

from l4kernels.inputs.files import shown

MAX_BYTES = 64 << 10
"""Of a schema, serialised."""
MAX_DEPTH = 64
"""Objects and lists in each other: a schema in a property of a schema is two levels down."""
MAX_COUNT = 10_000
"""Of `minItems`, `maxItems`, `minLength` and their like."""
MAX_REFERENCES = 512
"""Different targets of `$ref`."""
MAX_PROPERTIES = 1000
"""Of one object: the compiler goes as deep."""
MAX_COUNTED_PROPERTIES = 12
"""With optional ones among them and `minProperties` or `maxProperties`: a case for each."""
MAX_PATTERN_PROPERTIES = 16
"""Each pair is compared."""
MAX_MULTIPLES = 2_000
"""Sum of all `multipleOf`, without their powers of ten: each is a state machine of so many states,
compiled at 70 a millisecond."""
EXACT = 1 << 53
"""The compiler computes in float64: larger whole numbers would become their neighbours."""

_TYPES = {"null", "boolean", "integer", "number", "string", "array", "object"}
_FORMATS = {
    *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
}
_ANNOTATIONS = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$comment", "contentMediaType", "contentEncoding", "discriminator"),
}
_ONE = {"items", "additionalProperties"}
_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_MAPS = {"properties", "patternProperties", "$defs", "definitions"}
_DRAFTS = ("draft-06/", "draft-07/", "draft/2019-09/", "draft/2020-12/")


class GrammarError(ValueError):
    """A schema, or tools, that answers cannot be held to; the message is one line for clients."""


class _Schema(NamedTuple):
    value: Any
    path: tuple[str, ...]
    """As a JSON pointer has it, from the root."""

    def refuse(self, what: str) -> GrammarError:
        return GrammarError(f"schema at #{''.join('/' + _escaped(p) for p in self.path)}: {what}")

    def under(self, *path: str) -> "_Schema":
        value = self.value
        for part in path:
            value = value[int(part)] if isinstance(value, list) else value[part]
        return _Schema(value, self.path + path)


def checked_schema(schema: Any) -> str:
    """The schema as JSON text, when every word of it will be kept.

    Raises:
        GrammarError: no JSON Schema, a keyword or value that cannot be kept, or too much of it.

    >>> checked_schema({"type": "object", "title": "T", "properties": {"a": {"type": "null"}}})
    '{"type": "object", "title": "T", "properties": {"a": {"type": "null"}}}'
    """
    if not isinstance(schema, Mapping):
        raise GrammarError(f"expected a JSON schema, an object, got {shown(schema)}")
    _check_depth(schema)
    text = _text(schema)
    root = dict(schema)
    # Both are about other documents; the compiler would resolve references against them.
    _check_draft(root.pop("$schema", None))
    root.pop("$id", None)
    visited: dict[tuple[str, ...], Any] = {}
    references: list[_Schema] = []
    ahead = [_Schema(root, ())]
    while ahead:
        place = ahead.pop()
        visited[place.path] = place.value
        if isinstance(place.value, bool):
            continue
        if not isinstance(place.value, dict):
            raise place.refuse(f"expected an object or a boolean, got {shown(place.value)}")
        if "$ref" in place.value:
            references.append(place)
        ahead += _checked(place)
    _check_references(references, visited)
    _check_costs([schema for schema in visited.values() if isinstance(schema, dict)])
    return text if root == schema else _text(root)


def _text(schema: Any) -> str:
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError):
        raise GrammarError(
            "expected a schema of JSON values and Unicode text, without NaN or Infinity"
        ) from None
    if size > MAX_BYTES:
        raise GrammarError(
            f"expected a schema of at most {MAX_BYTES:,} bytes as JSON, got {size:,}"
        )
    return text


def _check_depth(schema: Any) -> None:
    """Level by level, so that no depth of a hostile schema costs a stack."""
    level, count = [schema], 0
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, (Mapping, list))
            for inner in (value.values() if isinstance(value, Mapping) else value)
        ]
        count += len(level)
        if not level:
            return
        if count > MAX_BYTES:
            raise GrammarError(f"expected a schema of at most {MAX_BYTES:,} bytes as JSON")
    raise GrammarError(f"expected objects and lists at most {MAX_DEPTH} levels deep")


def _check_draft(draft: Any) -> None:
    if draft is None:
        return
    if not isinstance(draft, str) or not any(f"json-schema.org/{d}" in draft for d in _DRAFTS):
        raise GrammarError(
            f"expected $schema to be JSON Schema draft 2020-12, 2019-09, 7 or 6, got {shown(draft)}"
        )


def _checked(place: _Schema) -> Iterator[_Schema]:
    """The schemas inside one, when its own keywords are right."""
    for key, value in place.value.items():
        inner = place.under(key)
        if key in _ANNOTATIONS or (key.startswith("x-") and key != "x-guidance"):
            continue
        if key in _VALUES:
            _VALUES[key](inner)
        elif key in _ONE:
            if isinstance(value, list):
                raise inner.refuse("a list is not supported; use prefixItems")
            yield inner
        elif key in _LISTS:
            if not isinstance(value, list) or not value:
                raise inner.refuse(f"expected a list of schemas, got {shown(value)}")
            yield from (inner.under(str(index)) for index in range(len(value)))
        elif key in _MAPS:
            if not isinstance(value, dict):
                raise inner.refuse(f"expected an object of schemas, got {shown(value)}")
            if len(value) > MAX_PROPERTIES:
                raise inner.refuse(f"expected at most {MAX_PROPERTIES}, got {len(value)}")
            if key == "patternProperties":
                if len(value) > MAX_PATTERN_PROPERTIES:
                    raise inner.refuse(f"expected at most {MAX_PATTERN_PROPERTIES} patterns")
                for pattern in value:
                    _check_pattern(_Schema(pattern, inner.path))
            yield from (inner.under(name) for name in value)
        elif key in _HINTS:
            raise place.refuse(f"{key} is not supported; {_HINTS[key]}")
        else:
            raise place.refuse(f"{shown(key)} is not supported")
    _check_counted_properties(place)


def _check_counted_properties(place: _Schema) -> None:
    properties, required = place.value.get("properties", {}), place.value.get("required", [])
    # The grammar counts keys, and cannot forbid the same key twice.
    if place.value.get("minProperties", 0) > max(1, len(set(required))):
        raise place.refuse("minProperties above 1 is supported only up to the number of required")
    if "minProperties" not in place.value and "maxProperties" not in place.value:
        return
    if len(properties) > MAX_COUNTED_PROPERTIES and not set(properties) <= set(required):
        raise place.refuse(
            "minProperties and maxProperties are supported beside at most "
            f"{MAX_COUNTED_PROPERTIES} properties, got {len(properties)}"
        )


def _check_costs(schemas: list[dict[str, Any]]) -> None:
    """Those that would take the compiler minutes, and gigabytes."""
    multiples = [Decimal(str(s["multipleOf"])) for s in schemas if "multipleOf" in s]
    if sum(map(_digits, multiples)) > MAX_MULTIPLES:
        raise GrammarError(
            f"expected all multipleOf together to be at most {MAX_MULTIPLES}, not counting powers "
            "of ten"
        )
    # The intersection of regular expressions takes time exponential in their number.
    expressions = sum(len(s.keys() & _EXPRESSIONS) for s in schemas)
    if any({"pattern", "format"} <= s.keys() for s in schemas):
        raise GrammarError("pattern and format of one string are not supported together")
    if expressions > 1 and any(map(_combines, schemas)):
        raise GrammarError(
            f"only one of {sorted(_EXPRESSIONS)} is supported in a schema that combines schemas: "
            "allOf, or $ref, anyOf or oneOf beside other keywords"
        )


_EXPRESSIONS = {"pattern", "patternProperties", "format", "multipleOf"}


def _digits(number: Decimal) -> int:
    digits = int("".join(map(str, number.as_tuple().digits)))
    while digits and digits % 10 == 0:
        digits //= 10
    return digits


def _combines(schema: dict[str, Any]) -> bool:
    """Whether an answer must be valid for two schemas at once."""
    keywords = {key for key in schema if key not in _ANNOTATIONS and not key.startswith("x-")}
    applied = keywords & {"$ref", "anyOf", "oneOf", "allOf"}
    if not applied:
        return False
    others = keywords - {"type", "$defs", "definitions"}
    return len(others) > 1 or len(schema.get("allOf", ())) > 1


_HINTS = {
    "additionalItems": "use prefixItems and items",
    "nullable": 'use "type": [..., "null"]',
    "$schema": "it belongs to the outermost schema",
    "$id": "it belongs to the outermost schema",
}


def _check_type(place: _Schema) -> None:
    names = place.value if isinstance(place.value, list) else [place.value]
    if not names or not all(isinstance(name, str) and name in _TYPES for name in names):
        raise place.refuse(f"expected one or more of {sorted(_TYPES)}, got {shown(place.value)}")


def _check_count(place: _Schema) -> None:
    value = place.value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        raise place.refuse(f"expected a whole number from 0 to {MAX_COUNT}, got {shown(value)}")


def _check_number(place: _Schema) -> None:
    value = place.value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise place.refuse(f"expected a number, got {shown(value)}")
    if not -EXACT <= value <= EXACT:  # nor is NaN; whole numbers may be beyond all floats
        raise place.refuse(f"expected a number from -2^53 to 2^53, got {shown(value)}")


def _check_multiple(place: _Schema) -> None:
    _check_number(place)
    if place.value <= 0:
        raise place.refuse(f"expected a number above 0, got {shown(place.value)}")


def _check_pattern(place: _Schema) -> None:
    """What Rust's regexes read in another way than ECMA-262's; the rest errs or means the same."""
    if not isinstance(place.value, str):
        raise place.refuse(f"expected a regular expression, got {shown(place.value)}")
    inside = escaped = False
    previous = ""
    for char in place.value:
        if escaped:
            escaped, previous = False, ""
            continue
        if inside and (char == "[" or (char == previous and char in "&-~")):
            raise place.refuse(f"expected {char} in a class to be written \\{char}")
        inside = char == "[" or (inside and char != "]")
        escaped, previous = char == "\\", char


def _check_format(place: _Schema) -> None:
    if place.value not in _FORMATS:
        raise place.refuse(
            f"the format {shown(place.value)} is not supported, only {sorted(_FORMATS)}"
        )


def _check_required(place: _Schema) -> None:
    if not isinstance(place.value, list) or not all(isinstance(n, str) for n in place.value):
        raise place.refuse(f"expected a list of names, got {shown(place.value)}")
    if len(place.value) > MAX_PROPERTIES:
        raise place.refuse(f"expected at most {MAX_PROPERTIES}, got {len(place.value)}")


def _check_const(place: _Schema) -> None:
    ahead = [place.value]
    while ahead:
        value = ahead.pop()
        if isinstance(value, (dict, list)):
            ahead += value.values() if isinstance(value, dict) else value
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            _check_number(_Schema(value, place.path))


def _check_enum(place: _Schema) -> None:
    if not isinstance(place.value, list) or not place.value:
        raise place.refuse(f"expected a list of values, got {shown(place.value)}")
    _check_const(place)


def _check_reference(place: _Schema) -> None:
    if not isinstance(place.value, str) or not place.value.startswith("#"):
        raise place.refuse(f"expected a place in this schema, #/..., got {shown(place.value)}")


_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_VALUES: dict[str, Callable[[_Schema], None]] = {
    **dict.fromkeys(_COUNTS, _check_count),
    **dict.fromkeys(_BOUNDS, _check_number),
    "multipleOf": _check_multiple,
    "type": _check_type,
    "const": _check_const,
    "enum": _check_enum,
    "required": _check_required,
    "pattern": _check_pattern,
    "format": _check_format,
    "$ref": _check_reference,
}


def _check_references(places: list[_Schema], visited: Mapping[tuple[str, ...], Any]) -> None:
    """Each must name a place that was checked as a schema; a default or an example was not."""
    targets = set()
    for place in places:
        name = place.value["$ref"]
        parts = unquote(name[1:]).split("/")
        path = tuple(part.replace("~1", "/").replace("~0", "~") for part in parts[1:])
        if parts[0] or path not in visited:
            raise place.refuse(f"$ref {shown(name)} names no schema in this schema")
        targets.add(path)
    if len(targets) > MAX_REFERENCES:
        raise GrammarError(f"expected at most {MAX_REFERENCES} targets of $ref, got {len(targets)}")


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
