"""The verbs and their options; each verb's work is in its own module.

This module is all that `--help` needs, so it must not import torch, nor what imports it.
"""

import importlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from l4kernels import __version__
from l4kernels.cli.interrupts import postponed
from l4kernels.layers.weights import FORMATS

app = typer.Typer(
    name="l4k",
    help="Llama 4 on Hopper GPUs, and anywhere else on a CPU.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N.  [default: cuda if all ops can run there]")
]
Reference = Annotated[
    bool, typer.Option("--reference", help="Run the typed references instead of CUDA kernels.")
]

WEIGHTS = " or".join(", ".join(FORMATS).rsplit(",", 1))
# Of the verbs that load a model.
Weights = Annotated[
    str | None,
    typer.Option(help=f"{WEIGHTS}: quantised at load.  [default: as the checkpoint has them]"),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="Activations: bfloat16 or float32.  [default: bfloat16 on a GPU]"),
]
Lora = Annotated[
    list[Path] | None, typer.Option(help="Folder of a PEFT adapter to merge; repeatable.")
]
KvDtype = Annotated[str, typer.Option(help="fp8, or auto: fp8 with int4 on a GPU.")]

# Of the verbs that a prompt is given to.
Temperature = Annotated[
    float | None, typer.Option(help="0 takes the likeliest token.  [default: checkpoint's]")
]
TopP = Annotated[
    float | None, typer.Option(help="Nucleus mass, 1 is off.  [default: checkpoint's]")
]
TopK = Annotated[
    int | None, typer.Option(help="Keep the k likeliest, 0 is off.  [default: checkpoint's]")
]
MinP = Annotated[
    float | None, typer.Option(help="Drop below this share of the likeliest, 0 is off.")
]
Seed = Annotated[int, typer.Option(help="Same seed, same text.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this string; repeatable.")]


def _verb(name: str) -> Any:
    """The module that does a verb's work."""
    try:
        Path.cwd()
    except FileNotFoundError:  # at the first matrix product oneMKL would end the program
        message = "the current folder no longer exists; change to another one"
        raise FileNotFoundError(message) from None
    with postponed():
        return importlib.import_module(f"l4kernels.cli.{name}")


def _route(wanted: bool) -> AbstractContextManager[None]:
    from l4kernels.ops import reference

    return reference() if wanted else nullcontext()


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    weights: Annotated[str, typer.Option(help=f"{WEIGHTS}.")] = "bf16",
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Seed of the text sample.")] = 7,
    reference: Reference = False,
    json: Json = False,
) -> None:
    """Run the shipped checkpoint: a text sample, bits per byte, and 360 digits."""
    verb = _verb("demo")

    with _route(reference):
        verb.run(weights=weights, device=device, seed=seed, as_json=json, reference=reference)


@app.command()
def generate(
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")],
    prompt: Annotated[str, typer.Option(help="Text; - reads standard input.")],
    image: Annotated[
        list[Path] | None, typer.Option(help="Image file; repeatable. Implies --chat.")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="Video file, seen as a few frames. Implies --chat.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Most frames of the video.  [default: 8]")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Use the checkpoint's chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="System message. Implies --chat.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 256,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = 0,
    stop: Stop = None,
    weights: Weights = None,
    dtype: Dtype = None,
    lora: Lora = None,
    device: Device = None,
    kv_dtype: KvDtype = "auto",
    reference: Reference = False,
    json: Json = False,
) -> None:
    """Continue a prompt (raw text), or answer it (--chat, --image, --video)."""
    verb = _verb("generate")

    request = verb.Request(
        model=model,
        prompt=prompt,
        images=tuple(image or ()),
        video=video,
        frames=frames,
        chat=chat,
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=tuple(stop or ()),
        weights=weights,
        dtype=dtype,
        device=device,
        kv_dtype=kv_dtype,
        reference=reference,
        lora=tuple(lora or ()),
    )
    with _route(reference):
        raise typer.Exit(verb.run(request, as_json=json))


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens of an answer.  [default: what the context leaves]"),
    ] = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = 0,
    stop: Stop = None,
    weights: Weights = None,
    dtype: Dtype = None,
    lora: Lora = None,
    device: Device = None,
    kv_dtype: KvDtype = "auto",
    reference: Reference = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object an answer.")] = False,
) -> None:
    """Talk with a model at the terminal, or line by line through a pipe; /help lists commands."""
    verb = _verb("chat")

    request = verb.Request(
        model=model,
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=tuple(stop or ()),
        weights=weights,
        dtype=dtype,
        device=device,
        kv_dtype=kv_dtype,
        reference=reference,
        lora=tuple(lora or ()),
    )
    with _route(reference):
        verb.run(request, as_json=json)


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option("--served-model-name", help="[default: the folder's]")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="Ask for this key; repeatable.", envvar="L4K_API_KEY"),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Most tokens of a conversation.  [default: what fits]")
    ] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(help="Room of the KV cache.  [default: what is free]")
    ] = None,
    slots: Annotated[int, typer.Option(help="Answers at once.")] = 64,
    prefix_cache: Annotated[bool, typer.Option(help="Reuse prompts that begin alike.")] = True,
    max_waiting: Annotated[
        int, typer.Option(help="Answers that may wait for a slot; then 429.")
    ] = 256,
    max_output_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 16_384,
    request_seconds: Annotated[float, typer.Option(help="Most time of a request.")] = 600.0,
    drain_seconds: Annotated[
        float, typer.Option(help="For running requests, when asked to end.")
    ] = 30.0,
    allow_media_host: Annotated[
        list[str] | None,
        typer.Option(help="Fetch images and videos from this host; repeatable."),
    ] = None,
    weights: Weights = None,
    dtype: Dtype = None,
    lora: Lora = None,
    device: Device = None,
    kv_dtype: KvDtype = "auto",
    reference: Reference = False,
) -> None:
    """Answer requests in OpenAI's protocol, and a browser at the same address."""
    verb = _verb("serve")

    settings = verb.Settings(
        model=model,
        host=host,
        port=port,
        name=name,
        api_keys=tuple(api_key or ()),
        context=context,
        kv_tokens=kv_tokens,
        slots=slots,
        prefix_cache=prefix_cache,
        max_waiting=max_waiting,
        max_output_tokens=max_output_tokens,
        request_seconds=request_seconds,
        drain_seconds=drain_seconds,
        media_hosts=tuple(allow_media_host or ()),
        weights=weights,
        dtype=dtype,
        device=device,
        kv_dtype=kv_dtype,
        reference=reference,
        lora=tuple(lora or ()),
    )
    with _route(reference):
        raise typer.Exit(verb.run(settings))


@app.command()
def plan(
    model: Annotated[
        str, typer.Argument(help="scout, maverick, behemoth, demo or a checkpoint folder.")
    ] = "scout",
    gpu: Annotated[
        list[str] | None, typer.Option(help="h100, h200, 8xh100 ...; repeatable.")
    ] = None,
    form: Annotated[
        list[str] | None, typer.Option("--format", help=f"{', '.join(FORMATS)} ...; repeatable.")
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Tokens per sequence: 8192, 128k, 1M.  [default: 8192]")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    kv_dtype: Annotated[
        str | None, typer.Option(help="bf16 or fp8.  [default: fp8 with int4 weights]")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also the formats of published checkpoints.")
    ] = False,
    json: Json = False,
) -> None:
    """What fits where: weights, KV cache and the decode floor, before anything is loaded."""
    verb = _verb("plan")

    verb.run(model, gpu, form, context, batch, kv_dtype, every=every, as_json=json)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="Folder in Meta's native form, or a GGUF file.", metavar="SOURCE")
    ],
    out: Annotated[Path, typer.Argument(help="New folder to write.", metavar="OUT")],
    json: Json = False,
) -> None:
    """Write a native or GGUF checkpoint as a Hugging Face folder in bf16."""
    verb = _verb("convert")

    verb.run(source, out, as_json=json)


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    form: Annotated[
        str, typer.Option("--format", help=f"{' or '.join(f for f in FORMATS if f != 'bf16')}.")
    ],
    keep_attention: Annotated[
        bool, typer.Option("--keep-attention", help="Leave attention unquantised.")
    ] = False,
    shard_size: Annotated[str, typer.Option(help="Most bytes of a file: 5GB, 500MB ...")] = "5GB",
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Text file to run the model over: scales for an fp8 KV cache."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare perplexity of source and result.")
    ] = False,
    text: Annotated[
        Path | None, typer.Option(help="Text file for --verify; the shipped checkpoint has one.")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Write a quantised checkpoint (compressed-tensors) that other engines read, too."""
    verb = _verb("quantize")

    request = verb.Request(
        model=model,
        out=out,
        form=form,
        keep_attention=keep_attention,
        shard_size=shard_size,
        calibrate=calibrate,
        verify=verify,
        text=text,
        device=device,
    )
    raise typer.Exit(verb.run(request, as_json=json))


@app.command()
def verify(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    against: Annotated[
        Path | None, typer.Option(help="List of SHA-256 to compare with, as sha256sum writes it.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="Record the list in this file.")] = None,
    json: Json = False,
) -> None:
    """Whether a checkpoint is whole: every tensor, tokenizer, template, SHA-256 of every file."""
    verb = _verb("verify")

    raise typer.Exit(verb.run(model, against=against, write=write, as_json=json))


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder.")], json: Json = False
) -> None:
    """What a checkpoint holds, how it will be loaded, and where it fits. Reads headers alone."""
    verb = _verb("inspect")

    verb.run(model, as_json=json)


@app.command()
def env(json: Json = False) -> None:
    """What is installed, which kernels are active and why not."""
    verb = _verb("env")

    verb.run(as_json=json)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Floors of the ops at the models' shapes, and times where there is a GPU."""
    verb = _verb("bench")

    raise typer.Exit(verb.run(context.args))


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,  # or the -- before the program's arguments is lost
    },
    add_help_option=False,
)
def emulate(context: typer.Context) -> None:
    """Run a CUDA program without a GPU, on the emulator that looks for its mistakes."""
    verb = _verb("emulate")

    raise typer.Exit(verb.run(context.args))
