"""`Llama4Config`: published files, their spellings and pitfalls, and absurd values."""

import copy
import io
import json
import time
import warnings
from dataclasses import replace

import pytest
import transformers

from l4kernels import Llama4, Llama4Config
from l4kernels.checkpoint.files.layout import layout
from l4kernels.inputs import files
from l4kernels.inputs.fields import ConfigError
from l4kernels.model.config_rules import RopeScaling
from tests.support.configs import SCOUT, scout


def test_scout_file_is_the_preset():
    config = Llama4Config.from_dict(SCOUT)
    preset = Llama4Config.preset("scout")
    assert config == Llama4Config(**{**vars(preset), "name": ""})
    assert config.attn_temperature_tuning is True


def test_maverick_file_is_the_preset():
    data = scout(
        num_local_experts=128,
        interleave_moe_layer_step=2,
        rope_scaling=None,
        use_qk_norm=False,
        max_position_embeddings=1048576,
    )
    preset = Llama4Config.preset("maverick")
    assert Llama4Config.from_dict(data) == Llama4Config(**{**vars(preset), "name": ""})


@pytest.mark.parametrize("name, total", [("scout", 108_641_793_536), ("maverick", 401_583_781_376)])
def test_parameter_counts(name, total):
    sizes = 0
    for slot in layout(Llama4Config.preset(name)).values():
        size = 1
        for side in slot.shape:
            size *= side
        sizes += size
    assert sizes == total


def test_behemoth_is_labelled_an_estimate():
    assert Llama4Config.preset("behemoth").estimate
    assert not Llama4Config.preset("scout").estimate
    with pytest.raises(ConfigError, match="scout, maverick, behemoth, demo"):
        Llama4Config.preset("llama5")


def test_rope_parameters_spelling():
    data = scout()
    text = data["text_config"]
    text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
    data["vision_config"]["rope_parameters"] = {
        "rope_theta": data["vision_config"].pop("rope_theta")
    }
    assert Llama4Config.from_dict(data) == Llama4Config.from_dict(SCOUT)
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1234.0}
    config = Llama4Config.from_dict(data)
    assert config.rope_theta == 1234.0 and config.rope_scaling is None


@pytest.mark.parametrize("value", [None, [], [1, 1, 1, 0] * 12])
def test_no_rope_layers_null_empty_or_listed(value):
    config = Llama4Config.from_dict(scout(no_rope_layers=value))
    assert [i for i, rope in enumerate(config.rope_layers) if not rope] == list(range(3, 48, 4))
    assert config.chunk(0) == 8192 and config.chunk(3) == 0


def test_explicit_layers_win():
    config = Llama4Config.from_dict(scout(moe_layers=[2, 5], no_rope_layers=[0] + [1] * 47))
    assert config.moe_layers == (2, 5) and config.is_moe(5) and not config.is_moe(4)
    assert not config.rope_layers[0] and config.rope_layers[3]
    types = ["full_attention"] * 47 + ["chunked_attention"]
    config = Llama4Config.from_dict(scout(layer_types=types))
    assert config.chunk(0) == 0 and config.chunk(47) == 8192


@pytest.mark.parametrize("field", sorted(SCOUT["text_config"]))
def test_an_absent_field_means_what_it_means_to_transformers(field):
    data = scout(attn_temperature_tuning=True, num_key_value_heads=8)
    del data["text_config"][field]
    try:
        ours = Llama4Config.from_dict(data)
    except ConfigError as error:
        assert f"{field} is missing" in str(error)  # a size is never guessed
        return
    theirs = Llama4Config.from_dict(transformers.Llama4Config(**copy.deepcopy(data)).to_dict())
    ids = {"bos_token_id": 0, "eos_token_ids": ()}  # theirs are Llama 2's: no id is better
    assert replace(ours, **ids) == replace(theirs, **ids)


def test_null_chunk_is_global_attention():
    config = Llama4Config.from_dict(scout(attention_chunk_size=None))
    assert all(config.chunk(layer) == 0 for layer in range(48))


def test_text_only_file_has_its_fields_at_the_top():
    data = {**scout()["text_config"], "architectures": ["Llama4ForCausalLM"]}
    config = Llama4Config.from_dict(data)
    assert config.vision is None and config.hidden_size == 5120


def test_dense_model_without_experts():
    data = scout(
        moe_layers=[], num_local_experts=None, no_rope_layer_interval=0, attention_chunk_size=None
    )
    config = Llama4Config.from_dict(data)
    assert config.moe_layers == () and config.num_local_experts == 0
    assert all(config.rope_layers) and not any(config.chunked_layers)
    assert "language_model.model.layers.0.feed_forward.gate_proj.weight" in layout(config)


def test_first_scaling_of_scout_is_overridden_with_a_warning():
    wrong = {**SCOUT["text_config"]["rope_scaling"], "factor": 8.0, "high_freq_factor": 4.0}
    with pytest.warns(UserWarning, match="factor 16"):
        config = Llama4Config.from_dict(scout(rope_scaling=wrong))
    assert config.rope_scaling == RopeScaling(16.0, 1.0, 1.0, 8192)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Llama4Config.from_dict(SCOUT)
        other = Llama4Config.from_dict(scout(rope_scaling=wrong, num_local_experts=8))
    assert other.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize("field", sorted(SCOUT["vision_config"]))
def test_vision_fields_are_never_filled_in(field):
    data = scout()
    del data["vision_config"][field]
    with pytest.raises(ConfigError, match=f"vision_config: {field} is missing"):
        Llama4Config.from_dict(data)


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", -1),
        ("hidden_size", 1 << 40),
        ("hidden_size", "5120"),
        ("hidden_size", None),
        ("num_local_experts", 256),
        ("num_experts_per_tok", 100),
        ("vocab_size", 10**10),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 7),
        ("head_dim", 127),
        ("intermediate_size", 2.5),
        ("attention_chunk_size", -4),
        ("floor_scale", 0),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", float("inf")),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("rope_scaling", [1, 2]),
        ("no_rope_layers", [1, 1, 1]),
        ("moe_layers", [48]),
        ("moe_layers", "all"),
        ("layer_types", ["sliding_attention"] * 48),
        ("eos_token_id", "end"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("model_type", "llama"),
        ("use_qk_norm", "yes"),
    ],
)
def test_absurd_values_are_refused_at_once(field, value):
    started = time.monotonic()
    with pytest.raises(ConfigError):
        Llama4Config.from_dict(scout(**{field: value}))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "field, value", [("image_size", 100), ("num_attention_heads", 15), ("vision_output_dim", 8)]
)
def test_inconsistent_vision_is_refused(field, value):
    data = scout()
    data["vision_config"][field] = value
    with pytest.raises(ConfigError, match="vision_config: expected"):
        Llama4Config.from_dict(data)


def test_files(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: not found"):
        Llama4Config.from_pretrained(tmp_path)
    file = tmp_path / "config.json"
    for text in ("{", "[]", '"x"', "[" * 100_000, '{"text_config": [1]}', '{"text_config": "x"}'):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"config\.json"):
            Llama4Config.from_pretrained(tmp_path)
    file.write_text(json.dumps(SCOUT))
    assert Llama4Config.from_pretrained(tmp_path).name == tmp_path.name
    for text in ("{", "[1]", '{"eos_token_id": "x"}', '{"pad_token_id": 1e99}'):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(ConfigError, match=r"generation_config\.json: "):
            Llama4Config.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6], "pad_token_id": 7}')
    config = Llama4Config.from_pretrained(tmp_path)
    assert config.eos_token_ids == (5, 6) and config.pad_token_id == 7


def test_a_file_that_waits_for_data(tmp_path, monkeypatch):
    """As a log of the kernel does, which calls itself a regular file."""
    (tmp_path / "config.json").touch()
    monkeypatch.setattr(files, "open_regular", lambda *_: Waiting())
    with pytest.raises(ConfigError, match=r"config\.json: .* got one that waits for data"):
        Llama4Config.from_pretrained(tmp_path)


class Waiting(io.BytesIO):
    def read(self, size=-1):
        return None


@pytest.mark.parametrize("name", ["x" * 5000, "\0", "", "no/such", "\udcff"])
def test_names_that_no_folder_has(name):
    for load in (Llama4Config, Llama4):
        with pytest.raises(ConfigError, match=r"cannot be read|not found"):
            load.from_pretrained(name)
