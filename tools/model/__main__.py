"""`python -m tools.model COMMAND`: what the timing model says. Nothing is measured."""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from tools.budget import load_budget
from tools.gemm_configs import GemmConfig, gemm_config, gemm_configs

from . import attention, decode, gemm, headers, layer, rates, router, stream, streaming, tables


def say(text: str) -> None:
    print(f"model  {text}")


def scout_products(experts: int) -> Iterator[tuple[str, int, int, int]]:
    """Name, N, K and experts of Llama 4 Scout's products."""
    from l4kernels.model.config import Llama4Config

    c = Llama4Config.preset("scout")
    heads, width, inner = c.num_attention_heads, c.hidden_size, c.intermediate_size
    yield "qkv", (heads + 2 * c.num_key_value_heads) * c.head_dim, width, 1
    yield "o", width, heads * c.head_dim, 1
    for name, count in (("", 1), ("experts ", experts)):
        yield f"{name}gate_up", 2 * inner, width, count
        yield f"{name}down", width, inner, count


def report_gemm(options: argparse.Namespace) -> None:
    """A product by every configuration that computes it; `*` is the one that choose_gemm takes."""
    board = rates.machine(options.gpu, options.clock)
    products = [("product", options.n, options.k, options.experts or 1)]
    if not options.n:
        products = list(scout_products(options.experts or 16))
    say(f"{options.gpu} at {board.clock_mhz:.0f} MHz, {options.format}")
    for name, n, k, experts in products:
        size = (options.m, n, k, experts, options.format)
        swiglu = name.endswith("gate_up")
        chosen = headers.gemm(*size, None, board.sms, swiglu=swiglu)
        for config in [options.config] if options.config else map(str, gemm_configs()):
            found = headers.gemm(*size, config, board.sms, swiglu=swiglu)
            if not (chosen and found) or found[1].promote != chosen[1].promote:
                continue
            answer, mark = gemm.estimate(*found[1:], board), " *"[config == chosen[0]]
            say(
                f"{name:16s} {options.m:6d} x {n} x {k}  {config:24s}{mark} splits "
                f"{found[1].splits}  {answer.us:9.1f} us  {answer.tflops:7.1f} TFLOP/s  tensor "
                f"{answer.tensor_busy:4.0%}  bytes alone {answer.memory_us:7.1f} us"
            )


def report_epilogue(options: argparse.Namespace) -> None:
    """The exposed part of every kind of epilogue that budget.toml counts, by configuration."""
    board = rates.machine(options.gpu, options.clock)
    say(f"{options.gpu} at {board.clock_mhz:.0f} MHz, K = {options.k}")
    say("| configuration | epilogue | instructions | exposed |")
    say("| --- | --- | --- | --- |")
    for config in map(str, gemm_configs()):
        rules = load_budget("gemm")[f"gemm_kernel<{config}>"].get("epilogue", {})
        for kind in (name for name in rules if not name.endswith("_waits") and name != "scaled"):
            size = options.m, options.n, options.k, 1, form_of(gemm_config(config))
            found = headers.gemm(*size, config, board.sms, epilogue=kind)
            if found is None:
                continue
            share = max(0.0, gemm.exposed(*found[1:], board))
            say(f"| `{config}` | {kind} | {found[1].instructions} | {share:.1%} |")


def form_of(config: GemmConfig) -> str:
    """The operands of a configuration, as `--format` has them."""
    return "bf16" if not config.fp8 else "fp8" if config.promote else "fp8_fast"


def report_attention(options: argparse.Namespace) -> None:
    clock = options.clock or rates.constants()["attention"]["clock"]["value"]
    board = rates.machine(options.gpu, clock)
    size = options.tokens, options.heads, options.kv_heads, options.chunk
    keys = options.keys or options.tokens
    asked = {name: getattr(options, name) for name in ("convert", "queries", "end", "pair")}
    asked = {name: value for name, value in asked.items() if value is not None}
    say(f"{options.gpu} at {clock:.0f} MHz, keys and values in {options.format}")
    for cut in (False, True):
        fp8 = options.format == "fp8"
        shape, work = headers.prefill(*size, fp8, board.sms, keys=keys, cut=cut)
        if cut and not work.pieces:
            break
        us, tflops = attention.estimate(replace(shape, **asked), work, board)
        say(
            f"{options.tokens} tokens of {keys}, chunk {options.chunk}, "
            f"{f'cut into {work.pieces}' if cut else 'whole'}: busiest CTA {work.items} and "
            f"{work.key_tiles} tiles of keys, {work.active} CTAs  {us:9.1f} us  "
            f"{tflops:7.1f} TFLOP/s"
        )


def report_stream(options: argparse.Namespace) -> None:
    """The streaming kernel at Scout's matrices, beside its bytes at the read ceiling."""
    board, form = stream.machine(), streaming.FORMATS[options.format]
    found = [p for p in streaming.products() if p.name in options.products or not options.products]
    say(f"h200 at {board.clock_mhz:.0f} MHz, {options.format} weights, {options.m} tokens")
    say("| product | floor us | single | chained | of the ceiling | slow start and end |")
    say("| --- | --- | --- | --- | --- | --- |")
    for product in found:
        kernel = streaming.stream_gemm(form, product, options.m, board)
        kernel = replace(kernel, trigger=options.trigger)
        answer = stream.simulate(kernel, board)
        slow = stream.simulate(*streaming.as_swapped(kernel, board))
        floor = product.weights(form) / (board.read_ceiling * 1e6)
        say(
            f"| {product.name} | {floor:.2f} | {answer.single_us:.2f} | {answer.chained_us:.2f} "
            f"| {floor / answer.chained_us:.0%} | {slow.chained_us:.2f} |"
        )


def report_decode(options: argparse.Namespace) -> None:
    """One layer of Scout: floor, the form that planned in every CTA, and the present one alone and
    beside the launch before it."""
    board = stream.machine()
    forms = decode.before(board), decode.after(board)
    say(f"h200 at {board.clock_mhz:.0f} MHz, {options.format} cache, us a layer")
    say("| sequences | keys | floor | before | alone | beside |")
    say("| --- | --- | --- | --- | --- | --- |")
    size = {"bf16": 2, "fp8": 1}[options.format]
    for batch in (1, 8, 64):
        for keys in (1024, 8192, 131072):
            old, new = (decode.predict(form, board, batch, keys, size) for form in forms)
            say(
                f"| {batch} | {keys:,} | {new.floor_us:.1f} | {old.alone_us:.1f} "
                f"| {new.alone_us:.1f} | {new.chained_us:.1f} |"
            )
    issue = decode.ISSUE[options.format]
    say(f"issue slots of a tile while its bytes come: {issue.share(board, size):.0%}")


def report_what_if(options: argparse.Namespace) -> None:
    """How much each constant and choice decides, in us of a chained launch."""
    form = streaming.FORMATS[options.format]
    names = options.products or ["QKV", "O", "gate-up", "down"]
    found = [p for p in streaming.products() if p.name in names]
    say("| change | " + " | ".join(p.name for p in found) + " |")
    say("| --- |" + " --- |" * len(found))
    for name, machine, kernel, room in streaming.WHAT_IF:
        changed = stream.machine(**machine)
        cells = []
        for product in found:
            what = streaming.stream_gemm(form, product, options.m, changed, room)
            what = replace(what, **{"trigger": options.trigger} | kernel)
            cells.append(f"{stream.simulate(what, changed).chained_us:.2f}")
        say(f"| {name} | " + " | ".join(cells) + " |")


def report_check(options: argparse.Namespace) -> None:
    """The simulation beside rows of bench/results/h200, and streaming beside the swapped GEMM."""
    board = stream.machine()
    say("| row | measured us | model us | error |")
    say("| --- | --- | --- | --- |")
    for c in chain(streaming.check_micro(board), streaming.check_swapped(board)):
        model = c.answer.chained_us
        say(f"| {c.name} | {c.measured_us:.2f} | {model:.2f} | {c.error:+.1%} |")
    say("| weights | M | product | swapped, measured | streaming, model | slow start and end | |")
    say("| --- | --- | --- | --- | --- | --- | --- |")
    for v in streaming.versus(board, options.trigger):
        say(
            f"| {v.format} | {v.m} | {v.product} | {v.swapped_us:.1f} | {v.streaming_us:.1f} "
            f"| {v.slow_us:.1f} | {v.verdict} |"
        )


def report_tables(options: argparse.Namespace) -> None:
    """For the kernels' pages: model / floor / best peer, in us, and a verdict if there is one."""
    for page in [options.page] if options.page else tables.TABLES:
        for line in tables.TABLES[page]():
            say(line)


def report_layer(options: argparse.Namespace) -> None:
    """A decode step's MoE layer by where its launches trigger, and by how much is asked ahead."""
    board = stream.machine()
    say(f"h200 at {board.clock_mhz:.0f} MHz, {options.format} weights, {options.m} tokens")
    say("| launches between products trigger | rings ahead | us of a layer |")
    say("| --- | --- | --- |")
    for early, rings in ((False, 1), (True, 1), (False, 2), (True, 2), (True, 3)):
        kernels = layer.decode_layer(
            streaming.FORMATS[options.format], options.m, board, early, rings
        )
        where = "before their wait" if early else "after it"
        say(f"| {where} | {rings} | {layer.period_us(kernels, board):.1f} |")


def report_router(options: argparse.Namespace) -> None:
    """One launch from rows to their experts, beside the norm, the GEMM and routing's two."""
    board = stream.machine()
    say("| experts | tokens | one launch us | four launches us | |")
    say("| --- | --- | --- | --- | --- |")
    for experts in (16, 128):
        for tokens in (128, 256, 512, 1024, 2048, 8192, 16384):
            one = router.one_launch_us(tokens, experts, board)
            four = router.three_ops_us(tokens, experts, board)
            verdict = "one" if 1.1 * one < four else "four" if one > 1.1 * four else "undecided"
            say(f"| {experts} | {tokens} | {one:.1f} | {four:.1f} | {verdict} |")


def report_rates(options: argparse.Namespace) -> None:
    """Errors against the published rates, by group: a table for docs/model.md."""
    rows = rates.validate()
    if options.rows:
        for r in rows:
            cut = "  cut by the ceiling" if r.cut else ""
            say(f"{r.group:24s} {r.use:9s} {r.rate:7.1f} {r.model:7.1f} {r.error:+6.1%}{cut}")
    say("| group | use | rows | not cut | mean error | bias | worst | order |")
    say("| --- | --- | --- | --- | --- | --- | --- | --- |")
    names = list(dict.fromkeys(r.group for r in rows))
    parts = [(name, [r for r in rows if r.group == name]) for name in names]
    parts += [("held out", [r for r in rows if r.use == "held out"]), ("all", rows)]
    for name, every in parts:
        rest = [r for r in every if not r.cut]
        use = " and ".join(sorted({r.use for r in every}))
        right, pairs = rates.order(every)
        bias = sum(r.error for r in rest) / len(rest)
        worst = max((r.error for r in rest), key=abs)
        say(
            f"| {name} | {use} | {len(every)} | {len(rest)} | {rates.mean_error(rest):.1%} "
            f"| {bias:+.1%} | {worst:+.1%} | {right} of {pairs} |"
        )
    say(f"mean error over all {len(rows)} rows, cut ones included: {rates.mean_error(rows):.1%}")


def at_least(least: int, kind: type = int) -> Callable[[str], Any]:
    """The type of an option whose value is a number of things, a time or a rate."""

    def number(text: str) -> Any:
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"expected {least} or more, got {text}")
        return value

    return number


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.model", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    product = commands.add_parser("gemm", help="configurations of configs.h")
    between = commands.add_parser("epilogue", help="what of it the tensor core waits for")
    prompt = commands.add_parser("attention", help="flash_prefill, one sequence")
    few = commands.add_parser("decode", help="flash_decode on an H200, phase by phase")
    few.add_argument("--format", choices=["bf16", "fp8"], default="bf16")
    flow = commands.add_parser("stream", help="stream_gemm in a chain of launches on an H200")
    whatif = commands.add_parser("stream-what-if", help="what decides its time")
    check = commands.add_parser("stream-check", help="its simulation against measured rows")
    step = commands.add_parser("layer", help="the launches of a decode step's MoE layer")
    routed = commands.add_parser(
        "router", help="moe_router beside the four launches that it replaces"
    )
    published = commands.add_parser("rates", help="errors against published rates")
    beside = commands.add_parser("tables", help="Llama 4's shapes beside floors and peers")
    beside.add_argument("--page", choices=tables.TABLES, help="one page's; all if not given")
    for streamed in (flow, whatif, check):
        streamed.add_argument("--trigger", choices=["start", "loaded", "end"], default="loaded")
    for streamed in (flow, whatif, step):
        streamed.add_argument("--format", choices=sorted(streaming.FORMATS), default="int4")
        streamed.add_argument("--m", type=int, choices=range(1, 17), default=1, metavar="M")
    for streamed in (flow, whatif):
        streamed.add_argument("--products", nargs="*", default=[], metavar="NAME")
    for board in (product, between, prompt):
        board.add_argument("--gpu", choices=sorted(rates.constants()["gpu"]), default="h100")
        board.add_argument("--clock", type=at_least(1, float), help="MHz")
    product.add_argument("--format", choices=["bf16", "fp8", "fp8_fast"], default="bf16")
    prompt.add_argument("--format", choices=["bf16", "fp8"], default="bf16")
    product.add_argument("--config", choices=[str(c) for c in gemm_configs()], metavar="NAME")
    for name in ("--n", "--k", "--experts"):
        product.add_argument(name, type=at_least(1))
    product.add_argument("--m", type=at_least(1), default=8192)
    for name, default in ("--m", 8192), ("--n", 16384), ("--k", 5120):
        between.add_argument(name, type=at_least(1), default=default)
    prompt.add_argument("--pair", action="store_true", help="two SMs share K and V by multicast")
    for name in ("--convert", "--queries", "--end"):
        prompt.add_argument(
            name, type=at_least(0, float), metavar="CYCLES", help="in place of the counted ones"
        )
    for name, size in ("tokens", 8192), ("heads", 40), ("kv-heads", 8):
        prompt.add_argument(f"--{name}", type=at_least(1), default=size)
    prompt.add_argument("--chunk", type=at_least(0), default=0, metavar="KEYS", help="0: none")
    prompt.add_argument("--keys", type=at_least(1), help="of the sequence; default: its new tokens")
    published.add_argument("--rows", action="store_true")
    reports = {
        product: report_gemm,
        between: report_epilogue,
        prompt: report_attention,
        few: report_decode,
        flow: report_stream,
        whatif: report_what_if,
        check: report_check,
        step: report_layer,
        routed: report_router,
        published: report_rates,
        beside: report_tables,
    }
    for command, report in reports.items():
        command.set_defaults(report=report)
    options = parser.parse_args()
    if options.command == "gemm" and (options.n is None) != (options.k is None):
        parser.error("--n and --k go together; without them: Llama 4 Scout's products")
    if options.command == "attention" and options.pair and options.format == "fp8":
        parser.error("--pair is modelled for bf16 keys: converters of two SMs share nothing")
    options.report(options)


if __name__ == "__main__":
    main()
