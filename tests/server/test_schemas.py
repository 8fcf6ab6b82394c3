"""Schemas that answers cannot be held to are refused by name, and none costs much time."""

import json

import pytest

from l4kernels.server.schemas import MAX_BYTES, GrammarError, checked_schema
from tests.support.json_schemas import schemas


def nested(levels):
    schema = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


REFUSED = {
    "no object": ([], "expected a JSON schema"),
    "a set": ({"enum": {1}}, "JSON values"),
    "NaN": ({"const": float("nan")}, "NaN"),
    "half a surrogate pair": ({"const": "\ud800"}, "Unicode text"),
    "too long": ({"description": "x" * MAX_BYTES}, "bytes"),
    "too deep": (nested(70), "64 levels"),
    "far too deep": (nested(5000), "64 levels"),
    "a deep value": ({"const": deep(200)}, "64 levels"),
    "a misspelled keyword": ({"type": "string", "maxLenght": 3}, "'maxLenght' is not supported"),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "'uniqueItems' is not supported"),
    "not": ({"not": {}}, "'not'"),
    "if": ({"if": {}, "then": {}}, "'if'"),
    "contains": ({"contains": {}}, "'contains'"),
    "propertyNames": ({"propertyNames": {}}, "'propertyNames'"),
    "dependentRequired": ({"dependentRequired": {}}, "'dependentRequired'"),
    "unevaluatedProperties": ({"unevaluatedProperties": False}, "'unevaluatedProperties'"),
    "nullable": ({"type": "string", "nullable": True}, "nullable is not supported; use"),
    "a tuple of old": ({"items": [{}]}, "use prefixItems"),
    "additionalItems": ({"additionalItems": False}, "additionalItems is not supported"),
    "the library's own": ({"x-guidance": {"lenient": True}}, "'x-guidance'"),
    "inside": (
        {"properties": {"a/b": {"anyOf": [{"foo": 1}]}}},
        "#/properties/a~1b/anyOf/0: 'foo'",
    ),
    "an old draft": ({"$schema": "http://json-schema.org/draft-04/schema#"}, "draft 2020-12"),
    "a schema that is none": ({"properties": {"a": 1}}, "expected an object or a boolean"),
    "properties that are none": ({"properties": []}, "expected an object of schemas"),
    "no alternatives": ({"anyOf": []}, "expected a list of schemas"),
    "an unknown type": ({"type": "str"}, "'str'"),
    "no types": ({"type": []}, "one or more of"),
    "an unknown format": ({"type": "string", "format": "int64"}, "the format 'int64'"),
    "a length that is none": ({"maxLength": -1}, "whole number"),
    "a length of true": ({"maxLength": True}, "whole number"),
    "a huge count": ({"minItems": 10**9}, "10000"),
    "a bound that is none": ({"minimum": "1"}, "expected a number"),
    "a bound of draft 4": ({"minimum": 1, "exclusiveMinimum": True}, "expected a number"),
    "a number beyond all floats": ({"minimum": -(10**400)}, "2^53"),
    "an inexact number": ({"const": 2**53 + 1}, "2^53"),
    "an inexact number inside": ({"enum": [{"a": [2**53 + 1]}]}, "2^53"),
    "multiples of nothing": ({"multipleOf": 0}, "above 0"),
    "large multiples": ({"multipleOf": 10.007}, "multipleOf together"),
    "no values": ({"enum": []}, "list of values"),
    "required names": ({"required": [1]}, "list of names"),
    "a class in a class": ({"pattern": "[a[b]]"}, r"written \\\["),
    "a class and a class": ({"pattern": r"^\[[a-z&&[^b]]"}, r"written \\&"),
    "two for one string": ({"pattern": "a", "format": "date"}, "not supported together"),
    "two of all": ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "combines schemas"),
    "two beside": ({"anyOf": [{"pattern": "a"}, {"pattern": "b"}], "minLength": 3}, "combines"),
    "keys that may repeat": ({"minProperties": 2}, "minProperties above 1"),
    "a case each": (
        {"properties": {str(i): {} for i in range(20)}, "minProperties": 1},
        "at most 12 properties",
    ),
    "many patterns": ({"patternProperties": {str(i): {} for i in range(20)}}, "at most 16"),
    "many properties": ({"properties": {str(i): {} for i in range(2000)}}, "at most 1000"),
    "a reference elsewhere": ({"$ref": "http://localhost/s"}, "a place in this schema"),
    "a reference to nothing": ({"$ref": "#/$defs/a"}, "names no schema"),
    "a reference to no schema": ({"default": {"foo": 1}, "$ref": "#/default"}, "names no schema"),
    "a reference to a name": ({"$ref": "#a", "$defs": {"a": {}}}, "names no schema"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_schemas(name):
    schema, message = REFUSED[name]
    with pytest.raises(GrammarError) as error:
        checked_schema(schema)
    text = str(error.value)
    assert message.replace("\\\\", "\\").replace("\\[", "[") in text, text
    assert "\n" not in text and len(text) < 500


def test_annotations_and_places_of_the_schema_are_kept():
    for schema in [
        *schemas(200),
        {"x-order": 1, "deprecated": True, "examples": [{"foo": 1}], "discriminator": {"a": 1}},
        {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "null"}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"properties": {"uniqueItems": True, "$schema": {}, "x-guidance": False}},
        {"pattern": r"^[\[\]&~-]\[&&--$"},
        nested(60),
    ]:
        text = checked_schema(schema)
        root = {k: v for k, v in schema.items() if k not in ("$schema", "$id")}
        assert json.loads(text) == root
