"""JSON schemas of every kind whose answers are short, and end."""

import random
from typing import Any

Schema = dict[str, Any]

LEAVES: list[Schema] = [
    {"type": "null"},
    {"type": "boolean"},
    {"const": "fixed"},
    {"const": [1, {"a": None, "b": -2.5}]},
    {"enum": ["red", "green", "blue", 'a "quote"', "grün", ""]},
    {"enum": [1, 2.5, None, "x", True, {"k": [0]}]},
    {"type": "integer", "minimum": 0, "maximum": 9},
    {"type": "integer", "minimum": -250, "exclusiveMaximum": 1000},
    {"type": "integer", "minimum": 0, "maximum": 96, "multipleOf": 7},
    {"type": "number", "minimum": -1, "maximum": 1},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 12.5},
    {"type": "number", "minimum": 0, "maximum": 64, "multipleOf": 0.5},
    {"type": "string", "maxLength": 8},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "pattern": r"^\d{1,3}(\.\d{2})?$"},
    {"type": "string", "pattern": "^(yes|no|maybe)$"},
    {"type": "string", "pattern": r"^\w{2,6}$", "maxLength": 4},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "uuid"},
    {"type": ["string", "null"], "maxLength": 4},
    {"type": ["integer", "boolean"], "minimum": 1, "maximum": 3},
    {"title": "T", "description": "d", "default": 1, "type": "integer", "minimum": 1, "maximum": 4},
]


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(["a", "b", "name", "größe", "x y", 'q"', "$ref", "type"], rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: made_schema(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }


def _map(rng: random.Random, depth: int) -> Schema:
    """Keys that nobody knows before."""
    most = {"minProperties": rng.randint(0, 1), "maxProperties": 3}
    if rng.random() < 0.5:
        pattern = {"^k[0-9]$": made_schema(rng, depth - 1)}
        return {
            "type": "object",
            "patternProperties": pattern,
            "additionalProperties": False,
            **most,
        }
    return {"type": "object", "additionalProperties": made_schema(rng, depth - 1), **most}


def _array(rng: random.Random, depth: int) -> Schema:
    first = [made_schema(rng, depth - 1) for _ in range(rng.randint(0, 2))]
    length = {"minItems": rng.randint(0, 2), "maxItems": rng.randint(2, 4)}
    items = made_schema(rng, depth - 1)
    return {"type": "array", **({"prefixItems": first} if first else {}), "items": items, **length}


def _choice(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [made_schema(rng, depth - 1) for _ in range(rng.randint(2, 3))]}


def _tagged(rng: random.Random, depth: int) -> Schema:
    """One of several, told apart by a member, as it is made from unions of classes."""
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "value": made_schema(rng, depth - 1)},
                "required": ["kind", "value"],
                "additionalProperties": False,
            }
            for kind in ("cat", "dog")
        ]
    }


def made_schema(rng: random.Random, depth: int) -> Schema:
    if depth == 0:
        return rng.choice(LEAVES)
    return rng.choice([_object, _object, _map, _array, _choice, _tagged])(rng, depth)


TREE: Schema = {
    "$defs": {
        "leaf": {"type": "integer", "minimum": 0, "maximum": 9},
        "tree": {
            "anyOf": [
                {"$ref": "#/$defs/leaf"},
                {"type": "array", "items": False, "minItems": 2,
                 "prefixItems": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/tree"}]},
            ]
        },
    },
    "$ref": "#/$defs/tree",
}  # fmt: skip
COMBINED: list[Schema] = [
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"properties": {"a": True, "b": {"type": "null"}}, "required": ["b"],
             "additionalProperties": False},
        ]
    },
    {"type": "integer", "anyOf": [{"maximum": 3}, {"minimum": 90}], "minimum": 0, "maximum": 99},
    {"$ref": "#/definitions/a", "definitions": {"a": {"enum": ["one", "two"]}}},
    {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "http://localhost/s",
     "type": "boolean"},
    {"type": "array", "items": False},
]  # fmt: skip


def schemas(count: int) -> list[Schema]:
    """The same ones every time; the first `count` of them."""
    rng = random.Random(0)
    made = [made_schema(rng, depth) for _ in range(count // 3 + 1) for depth in (1, 2, 3)]
    mixed = [*LEAVES, *COMBINED, TREE]
    rng.shuffle(mixed)
    both = [schema for pair in zip(mixed, made, strict=False) for schema in pair]
    return [*both, *made[len(mixed) :]][:count]
