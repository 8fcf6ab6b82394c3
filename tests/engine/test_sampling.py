"""Settings of the sampler: penalties, biases, streams of random numbers, what a file asks for."""

import json
import math

import pytest
import torch
import transformers
from transformers.generation import logits_process

from l4kernels import Llama4, Llama4Config, Sampling, ops
from l4kernels.engine.graphs import as_it_is
from l4kernels.engine.sequence import Choice, Sequence
from l4kernels.inputs.fields import ConfigError
from l4kernels.ops.philox import gumbel_noise, stream_seed
from tests.support import engines
from tests.support.checkpoints import TEXT, tensors_of, write

VOCAB = TEXT["vocab_size"]
BIAS = {3: 2.0, 17: -math.inf, 40: -1.5, 41: 100.0}
SETTINGS = {
    "penalty": {"repetition_penalty": 1.3},
    "reward": {"repetition_penalty": 0.6},
    "bias": {"logit_bias": BIAS},
    "both": {"repetition_penalty": 1.7, "logit_bias": BIAS},
}


def processors(repetition_penalty=1.0, logit_bias=None):
    """Those of transformers, in the order in which its generate applies them."""
    chain = transformers.LogitsProcessorList()
    if logit_bias:
        bias = {(token,): value for token, value in logit_bias.items()}
        chain.append(logits_process.SequenceBiasLogitsProcessor(bias))
    chain.append(logits_process.RepetitionPenaltyLogitsProcessor(float(repetition_penalty)))
    return chain


@pytest.mark.parametrize("name", SETTINGS)
def test_logits_are_processed_as_in_transformers(name, model, monkeypatch):
    """Bit by bit, over steps in which the rows' histories grow apart."""
    seen, sample = [], ops.sample
    monkeypatch.setattr(ops, "sample", lambda *a, **o: seen.append(a[0]) or sample(*a, **o))
    torch.manual_seed(3)
    history = torch.randint(0, VOCAB, (4, 30))
    sampling = Sampling(1.0, seed=5, **SETTINGS[name])
    rows = [
        Sequence(ids.tolist(), Choice(sampling, stream_seed(5, row), frozenset(), 10))
        for row, ids in enumerate(history)
    ]
    core = engines.engine_for(model, rows, capture=as_it_is)
    for row in rows:
        core.add(row)
    for _ in range(10):
        logits = torch.randn(4, VOCAB) * 4
        logits[0, 5], logits[1, 6], logits[2, :2] = math.inf, -math.inf, 0.0
        given = logits.clone()
        monkeypatch.setattr(core.model, "compute_logits", lambda _, logits=logits: logits)
        assert sorted(id(event.sequence) for event in core.step()) == sorted(map(id, rows))
        wanted = processors(**SETTINGS[name])(history, given.clone())
        assert torch.equal(seen[-1], wanted) and torch.equal(logits, given)
        history = torch.tensor([row.tokens for row in rows])
    assert core.idle


@pytest.mark.parametrize("name", ["penalty", "both"])
def test_greedy_tokens_equal_those_of_transformers(name, tmp_path):
    config = Llama4Config.from_dict({**TEXT, "tie_word_embeddings": False})
    write(tmp_path, tensors_of(config), architectures=["Llama4ForCausalLM"])
    theirs = transformers.Llama4ForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    ids = torch.randint(1, 150, (2, 9), generator=torch.Generator().manual_seed(1))
    options = dict(SETTINGS[name])
    bias = options.get("logit_bias")
    hf = {"repetition_penalty": options.get("repetition_penalty", 1.0)}
    if bias:
        hf["sequence_bias"] = {(token,): value for token, value in bias.items()}
    wanted = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, **hf
    )
    ours = Llama4.from_pretrained(tmp_path)
    got = ours.generate(ids, 12, **options)
    assert torch.equal(got, wanted)
    assert not torch.equal(got, ours.generate(ids, 12))
    drawn = ours.generate(ids, 40, 5.0, seed=3, logit_bias=BIAS)[:, 9:]
    assert not (drawn == 17).any()


def test_streams_of_seeds_and_rows_do_not_meet():
    seeds = [*range(1000), *range(-1000, 0), -(1 << 63), (1 << 63) - 1]
    streams = [stream_seed(seed, row) for seed in seeds for row in range(64)]
    assert len(set(streams)) == len(streams)
    assert all(-(1 << 63) <= s < 1 << 63 for s in streams)
    assert any(s < 0 for s in streams) and any(s > 0 for s in streams)


def test_streams_are_what_they_were():
    """The text of a seed is a promise. By SplitMix64's published finaliser, in other words."""
    mask = (1 << 64) - 1

    def splitmix64(state):
        z = (state + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert splitmix64(1234567) == 6457827717110365317  # the reference implementation's first
    for seed, row in ((0, 0), (1, 0), (0, 1), (-5, 63), (1 << 62, 7)):
        wanted = splitmix64((splitmix64(seed & mask) + row) & mask)
        assert stream_seed(seed, row) & mask == wanted


def test_streams_are_independent():
    """Noise of neighbouring seeds and rows is as good as uncorrelated."""
    pairs = [(seed, row) for seed in range(-8, 8) for row in range(16)]
    seeds = torch.tensor([stream_seed(*pair) for pair in pairs])
    noise = gumbel_noise(seeds, torch.zeros_like(seeds), 4000).double()
    correlation = torch.corrcoef(noise) - torch.eye(len(pairs))
    # 32,640 pairs of 4,000 numbers: the largest of as many normals is below 6 deviations.
    assert correlation.abs().max() < 6 / 4000**0.5
    bits = torch.tensor([[s >> b & 1 for b in range(64)] for s in seeds.tolist()]).double()
    assert (bits.mean(0) - 0.5).abs().max() < 5 * 0.5 / len(pairs) ** 0.5


@pytest.fixture(scope="module")
def model():
    return Llama4.random(Llama4Config.from_dict({**TEXT, "num_hidden_layers": 1}))


def test_best_of_n_does_not_repeat(model):
    """n rows of each of m seeds are n * m different answers; a row does not depend on the batch."""
    ids, draw = torch.tensor([[1, 2, 3]]), {"max_new_tokens": 8, "temperature": 5.0}
    answers = []
    for seed in range(6):
        rows = model.generate(ids.repeat(6, 1), seed=seed, **draw)
        assert torch.equal(rows[:1], model.generate(ids, seed=seed, **draw))
        assert torch.equal(rows[:4], model.generate(ids.repeat(4, 1), seed=seed, **draw))
        answers += map(tuple, rows.tolist())
    assert len(set(answers)) == 36


def test_without_a_seed_every_generation_is_another(model):
    ids = torch.tensor([[1, 2, 3]])
    assert len({tuple(model.generate(ids, 8, 5.0)[0].tolist()) for _ in range(4)}) == 4


def ask(folder, **fields):
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return Sampling.from_pretrained(folder)


def test_a_checkpoint_asks_for_what_there_is(tmp_path):
    assert ask(tmp_path, do_sample=True, top_k=-1) == Sampling(1.0)
    assert ask(tmp_path, do_sample=True, repetition_penalty=1.2) == Sampling(
        1.0, repetition_penalty=1.2
    )
    assert ask(tmp_path, repetition_penalty=1.2) == Sampling(repetition_penalty=1.2)
    assert ask(tmp_path, do_sample=False, temperature=0.7, typical_p=0.5) == Sampling()
    for drawn in (False, True):
        wanted = Sampling(float(drawn), min_tokens=5)
        assert ask(tmp_path, do_sample=drawn, min_new_tokens=5) == wanted
    assert ask(tmp_path, min_new_tokens=None) == Sampling()


REFUSED = {
    "num_beams": 4, "num_beam_groups": 2, "num_return_sequences": 2, "diversity_penalty": 0.5,
    "penalty_alpha": 0.6, "typical_p": 0.9, "top_h": 0.4, "epsilon_cutoff": 3e-4,
    "eta_cutoff": 3e-4, "encoder_repetition_penalty": 1.5, "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 3, "bad_words_ids": [[5]], "force_words_ids": [[5]],
    "constraints": ["x"], "min_length": 5, "max_time": 2.0,
    "stop_strings": ["END"], "forced_bos_token_id": 3, "forced_eos_token_id": 3,
    "remove_invalid_values": True, "exponential_decay_length_penalty": [3, 1.1],
    "suppress_tokens": [5], "begin_suppress_tokens": [5], "sequence_bias": [[[5], -1.0]],
    "token_healing": True, "guidance_scale": 1.5, "watermarking_config": {"bias": 2.0},
    "dola_layers": "low",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_way_of_choosing_that_is_not_there_is_refused_by_name(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"generation_config\.json: {name} = .* not supported"):
        ask(tmp_path, do_sample=True, **{name: REFUSED[name]})
    assert ask(tmp_path, do_sample=True, **{name: None}) == Sampling(1.0)


def test_neutral_values_are_no_obstacle(tmp_path):
    """A file with every default that transformers ever wrote, spelled out."""
    neutral = {
        "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "diversity_penalty": 0.0,
        "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "length_penalty": 1.0,
        "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0, "min_length": 0, "max_length": 20, "top_k": 0,
        "remove_invalid_values": False, "renormalize_logits": False, "early_stopping": False,
        "use_cache": True, "guidance_scale": 1.0, "suppress_tokens": [], "token_healing": False,
        "transformers_version": "4.51.0", "penalty_alpha": 0.0, "guidance": None,
    }  # fmt: skip
    assert ask(tmp_path, do_sample=True, **neutral) == Sampling(1.0)
    assert ask(tmp_path, **transformers.GenerationConfig().to_dict()) == Sampling()


@pytest.mark.parametrize("value", [0, -1, 1e9, "1.2", True, [1.2], math.nan, math.inf], ids=str)
def test_a_penalty_out_of_range_names_the_file(tmp_path, value):
    with pytest.raises(ConfigError, match=r"generation_config\.json: expected repetition_penalty"):
        ask(tmp_path, repetition_penalty=value)


def test_a_folder_that_is_not_there_is_not_greedy(tmp_path):
    assert Sampling.from_pretrained(tmp_path) == Sampling()
    with pytest.raises(ConfigError, match="expected a checkpoint folder"):
        Sampling.from_pretrained(tmp_path / "typo")


@pytest.mark.parametrize(
    ("published", "wanted"),
    [
        (  # Llama 3
            {"bos_token_id": 128000, "do_sample": True, "eos_token_id": [128001, 128009],
             "max_length": 4096, "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.40"},
            Sampling(0.6, top_p=0.9),
        ),
        (  # Llama 2: a temperature without do_sample
            {"_from_model_config": True, "max_length": 4096, "pad_token_id": 0, "temperature": 0.9,
             "top_p": 0.6, "eos_token_id": 2},
            Sampling(),
        ),
        (  # Qwen 2.5 VL
            {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.000001},
            Sampling(1e-6, repetition_penalty=1.05),
        ),
        (  # Qwen
            {"chat_format": "chatml", "max_window_size": 6144, "max_new_tokens": 512, "top_k": 0,
             "do_sample": True, "top_p": 0.8, "stop_words_ids": []},
            Sampling(1.0, top_p=0.8),
        ),
        (  # Gemma 3
            {"cache_implementation": "hybrid", "do_sample": True, "top_k": 64, "top_p": 0.95},
            Sampling(1.0, top_k=64, top_p=0.95),
        ),
        (  # nothing but nulls and flags that choose no token
            {"min_p": None, "top_k": None, "use_cache": False, "output_scores": True,
             "return_dict_in_generate": True, "trust_remote_code": True},
            Sampling(),
        ),
    ],
    ids=["llama 3", "llama 2", "qwen 2.5 vl", "qwen", "gemma 3", "flags"],
)  # fmt: skip
def test_published_files_are_taken(tmp_path, published, wanted):
    assert ask(tmp_path, **published) == wanted
