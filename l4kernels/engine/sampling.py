"""How a token is chosen: settings, and what a checkpoint asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from l4kernels.inputs.arguments import number, whole_number
from l4kernels.inputs.fields import Fields
from l4kernels.inputs.files import shown

TOP_K_MAX = 1 << 30
_PENALTY_MAX = 1e3
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "min_length": (0,),
    "max_time": (),
    "stop_strings": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ([], {}),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "dola_layers": (),
}
"""Fields of `generation_config.json` that would choose other tokens, and their values that do not
(nor does null)."""
_NEUTRAL_DRAWN = {"typical_p": (1,), "top_h": (), "epsilon_cutoff": (0,), "eta_cutoff": (0,)}
"""The same, of those that count when `do_sample` is set."""


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Temperature 0 takes the most likely one.

    Steps, in their order: `logit_bias` is added to the logits; `repetition_penalty` divides those
    of the tokens that the prompt or the answer holds already, or multiplies them where they are
    negative; a token that the answer holds n times loses `frequency_penalty * n +
    presence_penalty`; end tokens are banned until there are `min_tokens`; then temperature, top-k,
    top-p and min-p as in `ops.sample`.

    Args:
        temperature: 0 to 1e6.
        top_k: the k likeliest tokens; 0: off.
        top_p: in (0, 1]; 1: off.
        min_p: in [0, 1]; 0: off.
        seed: 64 bits, signed; None: another one for every generation. Each row of a batch draws
            from a stream of its own: `ops.philox.stream_seed`.
        repetition_penalty: 0.001 to 1000; 1: off, above: fewer repetitions.
        logit_bias: token id -> what is added to its logit; -inf bans the token.
        frequency_penalty, presence_penalty: -1000 to 1000 (OpenAI's: -2 to 2); 0: off.
        min_tokens: new tokens before an end token may be chosen.

    Raises:
        ValueError: names the argument, what was expected and what came.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    min_tokens: int = 0

    def __post_init__(self) -> None:
        penalty, seed, most = self.repetition_penalty, self.seed, _PENALTY_MAX
        plain = {
            "temperature": number("temperature", self.temperature, 0, 1e6),
            "top_k": whole_number("top_k", self.top_k, 0),
            "top_p": number("top_p", self.top_p, 0, 1, above=True),
            "min_p": number("min_p", self.min_p, 0, 1),
            "seed": None if seed is None else whole_number("seed", seed, -(1 << 63), (1 << 63) - 1),
            "repetition_penalty": number("repetition_penalty", penalty, 1 / most, most),
            "logit_bias": _biases(self.logit_bias),
            "frequency_penalty": number("frequency_penalty", self.frequency_penalty, -most, most),
            "presence_penalty": number("presence_penalty", self.presence_penalty, -most, most),
            "min_tokens": whole_number("min_tokens", self.min_tokens, 0),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def processes(self) -> bool:
        """Whether logits are changed before a token is drawn."""
        penalties = self.repetition_penalty != 1, self.frequency_penalty, self.presence_penalty
        return bool(any(penalties) or self.min_tokens or self.logit_bias)

    def seed_now(self) -> int:
        """Its seed, or a new one of torch's generator, which stays as it is if nothing is drawn.

        >>> Sampling(seed=7).seed_now(), Sampling().seed_now()
        (7, 0)
        """
        if self.seed is not None or not self.temperature:
            return self.seed or 0
        return int(torch.randint(1 << 62, (), device="cpu"))

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Sampling":
        """What a checkpoint's `generation_config.json` asks for; greedy without `do_sample`.

        A setting that is not in the file is off, also `top_k` (which transformers sets to 50).
        Lengths (`max_length`, `max_new_tokens`) are arguments of `Llama4.stream`; end tokens and
        the pad token are in `Llama4Config`.

        Raises:
            ConfigError: there is no such folder, the file cannot be read, a value is out of range,
                or it asks for a way of choosing tokens that is not supported.
        """
        folder = Path(path)
        f = Fields.of_file(folder / "generation_config.json", optional=folder.is_dir())
        drawn = f.boolean("do_sample", default=False)
        for name, neutral in (_NEUTRAL | (_NEUTRAL_DRAWN if drawn else {})).items():
            value = f.data.get(name)
            if value is not None and value not in neutral:
                f.fail(f"{name} = {shown(value)} is not supported; take it out of the file")
        always: dict[str, Any] = {
            "repetition_penalty": f.number("repetition_penalty", 1e-3, 1e3, default=1.0),
            "min_tokens": f.integer("min_new_tokens", 0, TOP_K_MAX, default=0) or 0,
        }
        if not drawn:
            return cls(**always)
        return cls(
            temperature=f.number("temperature", 0.0, 1e6, default=1.0),
            top_k=max(0, f.integer("top_k", -1, TOP_K_MAX, default=0)),  # -1: off
            top_p=f.number("top_p", 1e-9, 1.0, default=1.0),
            min_p=f.number("min_p", 0.0, 1.0, default=0.0),
            **always,
        )


def _biases(given: Any) -> dict[int, float]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"expected logit_bias to map token ids to numbers, got {shown(given)}")
    return {
        whole_number("every token of logit_bias", token, 0): number(
            "every value of logit_bias", bias, float("-inf"), 1e6
        )
        for token, bias in given.items()
    }
