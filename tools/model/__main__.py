"""`python -m tools.model gemm|attention|rates`: what the timing model says. Nothing is measured."""

import argparse
from collections.abc import Iterator

from tools.gemm_configs import gemm_configs

from . import attention, gemm, headers, rates


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
        chosen = headers.gemm(*size, None, board.sms)
        for config in [options.config] if options.config else map(str, gemm_configs()):
            found = headers.gemm(*size, config, board.sms)
            if not (chosen and found) or found[1].promote != chosen[1].promote:
                continue
            answer, mark = gemm.estimate(*found[1:], board), " *"[config == chosen[0]]
            say(
                f"{name:16s} {options.m:6d} x {n} x {k}  {config:24s}{mark} splits "
                f"{found[1].splits}  {answer.us:9.1f} us  {answer.tflops:7.1f} TFLOP/s  tensor "
                f"{answer.tensor_busy:4.0%}  bytes alone {answer.memory_us:7.1f} us"
            )


def report_attention(options: argparse.Namespace) -> None:
    clock = options.clock or rates.constants()["attention"]["clock"]["value"]
    board = rates.machine(options.gpu, clock)
    size = options.tokens, options.heads, options.kv_heads, options.chunk
    us, tflops = attention.estimate(
        *headers.prefill(*size, options.format == "fp8", board.sms), board
    )
    say(f"{options.gpu} at {clock:.0f} MHz, keys and values in {options.format}")
    say(f"{options.tokens} tokens, chunk {options.chunk}  {us:9.1f} us  {tflops:7.1f} TFLOP/s")


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.model", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    product = commands.add_parser("gemm", help="configurations of configs.h")
    prompt = commands.add_parser("attention", help="flash_prefill, one sequence")
    published = commands.add_parser("rates", help="errors against published rates")
    for board in (product, prompt):
        board.add_argument("--gpu", choices=sorted(rates.constants()["gpu"]), default="h100")
        board.add_argument("--clock", type=float, help="MHz")
    product.add_argument("--format", choices=["bf16", "fp8", "fp8_fast"], default="bf16")
    prompt.add_argument("--format", choices=["bf16", "fp8"], default="bf16")
    product.add_argument("--config", choices=[str(c) for c in gemm_configs()], metavar="NAME")
    for name in ("--n", "--k", "--experts"):
        product.add_argument(name, type=int)
    product.add_argument("--m", type=int, default=8192)
    for name, size in ("tokens", 8192), ("heads", 40), ("kv-heads", 8), ("chunk", 0):
        prompt.add_argument(f"--{name}", type=int, default=size)
    published.add_argument("--rows", action="store_true")
    reports = (product, report_gemm), (prompt, report_attention), (published, report_rates)
    for command, report in reports:
        command.set_defaults(report=report)
    options = parser.parse_args()
    if options.command == "gemm" and (options.n is None) != (options.k is None):
        parser.error("--n and --k go together; without them: Llama 4 Scout's products")
    options.report(options)


if __name__ == "__main__":
    main()
