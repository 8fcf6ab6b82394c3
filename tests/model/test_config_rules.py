"""Rules of `config.json`: rotation and special tokens as in transformers, numbers of any size."""

import copy
import itertools
import json
import math
import warnings

import pytest
import transformers

from l4kernels import Llama4Config
from l4kernels.inputs.fields import ConfigError, Fields
from l4kernels.model.config_rules import RopeScaling
from tests.support.configs import SCOUT, scout
from tests.support.hostile import paths, put

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
SHORT = {k: v for k, v in LLAMA3.items() if not k.startswith("original")}
DEFAULT = {"rope_type": "default"}
ABSENT = object()
OBJECTS = [
    ABSENT,
    None,
    {},
    DEFAULT,
    {**DEFAULT, "rope_theta": 7.0},
    LLAMA3,
    {**LLAMA3, "rope_theta": 9.0},
    {"type": "llama3", **{k: v for k, v in SHORT.items() if k != "rope_type"}},
    {"factor": 8.0},
]


@pytest.mark.parametrize("theta", [ABSENT, 11.0])
def test_rotation_is_transformers_for_every_combination_of_its_fields(theta):
    for scaling, parameters in itertools.product(OBJECTS, OBJECTS):
        fields = {"rope_scaling": scaling, "rope_parameters": parameters, "rope_theta": theta}
        data = scout(max_position_embeddings=65_536, attn_temperature_tuning=True)
        for name, value in fields.items():
            data["text_config"].pop(name, None)
            if value is not ABSENT:
                data["text_config"][name] = value
        ours = Llama4Config.from_dict(copy.deepcopy(data))
        theirs = transformers.Llama4Config(**copy.deepcopy(data)).text_config.rope_parameters
        assert ours.rope_theta == theirs["rope_theta"], fields
        if theirs["rope_type"] == "default":
            assert ours.rope_scaling is None, fields
        else:
            wanted = {name: theirs[name] for name in LLAMA3 if name != "rope_type"}
            assert ours.rope_scaling == RopeScaling(**wanted), fields


def test_rope_scaling_counts_beside_default_rope_parameters():
    data = scout(rope_parameters=DEFAULT, rope_scaling=LLAMA3)
    assert Llama4Config.from_dict(data).rope_scaling == RopeScaling(16.0, 1.0, 1.0, 8192)


def test_rotation_beside_text_config_does_not_count():
    with pytest.warns(UserWarning, match="rope_theta stands beside text_config"):
        assert Llama4Config.from_dict({**scout(), "rope_theta": 9.0}).rope_theta == 500_000.0
    with pytest.raises(ConfigError, match="config: rope_scaling stands beside text_config"):
        Llama4Config.from_dict({**scout(rope_scaling=None), "rope_scaling": LLAMA3})


@pytest.mark.parametrize(
    "rope, message",
    [
        ({"rope_parameters": {"chunked_attention": LLAMA3}, "rope_scaling": None}, "by layer type"),
        ({"rope_scaling": {**LLAMA3, "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 1 "),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 1 "),
        ({"rope_scaling": {**LLAMA3, "rope_type": "yarn"}}, "default or llama3, got 'yarn'"),
        ({"rope_scaling": {**LLAMA3, "rope_type": ["llama3"]}}, "default or llama3, got "),
        ({"rope_scaling": "llama3"}, "rope_scaling: expected an object, got 'llama3'"),
    ],
)
def test_rotations_that_are_not_supported(rope, message):
    with pytest.raises(ConfigError, match=message):
        Llama4Config.from_dict(scout(**rope))


@pytest.mark.parametrize(
    "fields, theta",
    [
        ({"rope_theta": 123.0}, 123.0),
        ({"rope_parameters": {"rope_theta": 5.0}}, 5.0),
        ({"rope_parameters": {**DEFAULT}, "rope_theta": 5.0}, 5.0),
        ({"rope_scaling": {**DEFAULT, "rope_theta": 6.0}, "rope_theta": 5.0}, 6.0),
        ({"rope_parameters": LLAMA3, "rope_theta": 5.0}, None),
        ({"rope_theta": 0.0}, None),
        ({"rope_theta": True}, None),
        ({"rope_parameters": DEFAULT, "rope_theta": None}, None),
    ],
)
def test_rotation_of_the_vision_tower(fields, theta):
    data = scout(attn_temperature_tuning=True)
    data["vision_config"] |= fields
    if theta is None:
        with pytest.raises(ConfigError, match=r"vision_config: (only rope_type|.*rope_theta)"):
            Llama4Config.from_dict(data)
        return
    if "rope_theta" not in fields:
        del data["vision_config"]["rope_theta"]
    assert Llama4Config.from_dict(data).vision.rope_theta == theta
    theirs = transformers.Llama4Config(**copy.deepcopy(data)).vision_config.rope_parameters
    assert theirs["rope_theta"] == theta


PLACES = ("generation", "top", "text")


@pytest.mark.parametrize("field", ["eos_token_id", "bos_token_id", "pad_token_id"])
@pytest.mark.parametrize(
    "named", [set(c) for n in range(4) for c in itertools.combinations(PLACES, n)]
)
def test_special_tokens_are_the_first_that_are_named(tmp_path, field, named):
    """In generation_config.json, then at the top of config.json, then in `text_config`."""
    data, generation = scout(), {}
    data["text_config"].pop(field)
    objects = {"generation": generation, "top": data, "text": data["text_config"]}
    for place in named:
        objects[place][field] = 100 + PLACES.index(place)
    (tmp_path / "config.json").write_text(json.dumps(data))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    config = Llama4Config.from_pretrained(tmp_path)
    wanted = next((100 + i for i, place in enumerate(PLACES) if place in named), None)
    got = getattr(config, {"eos_token_id": "eos_token_ids"}.get(field, field))
    assert got == (wanted if field != "eos_token_id" else () if wanted is None else (wanted,))
    if "generation" not in named and named:
        made = transformers.GenerationConfig.from_model_config(copy.deepcopy(data))
        assert getattr(made, field) == wanted


@pytest.mark.parametrize("place", PLACES)
def test_an_end_token_that_no_logit_stands_for(tmp_path, place):
    data, generation = scout(), {}
    size = data["text_config"]["vocab_size"]
    objects = {"generation": generation, "top": data, "text": data["text_config"]}
    objects[place]["eos_token_id"] = [1, size - 1]
    for last in (size - 1, size, 10**6):
        objects[place]["eos_token_id"][1] = last
        (tmp_path / "config.json").write_text(json.dumps(data))
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            assert Llama4Config.from_pretrained(tmp_path).eos_token_ids == (1, last)
        said = [
            str(w.message) for w in heard if f"eos_token_id [{last}] is beyond" in str(w.message)
        ]
        assert len(said) == (last >= size)


def test_image_tokens_by_either_name():
    data = scout()
    for kind in ("image", "boi", "eoi"):
        data[f"{kind}_token_id"] = data.pop(f"{kind}_token_index")
    assert Llama4Config.from_dict(data) == Llama4Config.from_dict(SCOUT)


HUGE = 10**400
ODD = [HUGE, -HUGE, 10**5000, math.inf, math.nan, 1e308, [[HUGE]], {"a": HUGE}]


@pytest.mark.parametrize("new", ODD, ids=range(len(ODD)))
def test_numbers_that_no_float_holds(new):
    """At every place of a config, also one that never was a file."""
    for path in paths(SCOUT):
        unknown_rope = isinstance(new, dict) and path[-1:] == ("rope_scaling",)
        if path[0] != "architectures" and not unknown_rope:
            with pytest.raises(ConfigError):
                Llama4Config.from_dict(put(SCOUT, path, new))
    with pytest.raises(ConfigError, match="expected x to be a number in"):
        Fields({"x": new}, "here").number("x", 0.0, 1.0)


@pytest.mark.parametrize("wrong", [True, "1", [], {}, 0.5])
def test_wrong_types_are_never_taken_for_numbers(wrong):
    for name, value in SCOUT["text_config"].items():
        if type(value) is int and name not in ("attn_temperature_tuning", "bos_token_id"):
            with pytest.raises(ConfigError, match=name):
                Llama4Config.from_dict(scout(**{name: wrong}))
