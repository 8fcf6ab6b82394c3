"""`python -m tools.model gemm|attention|rates`: what the timing model says. Nothing is measured."""

import argparse
from collections.abc import Callable, Iterator

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
    """A product by every row that can compute it; `*` is the one that choose_gemm takes."""
    board = rates.machine(options.gpu, options.clock)
    products = [("product", options.n, options.k, options.experts or 1)]
    if not options.n:
        products = list(scout_products(options.experts or 16))
    say(f"{options.gpu} at {board.clock_mhz:.0f} MHz, {options.format}")
    for name, n, k, experts in products:
        size = (options.m, n, k, experts, options.format)
        chosen = headers.gemm(*size, -1, board.sms)
        rows = range(headers.rows()) if options.config is None else [options.config]
        for row in rows:
            found = headers.gemm(*size, row, board.sms)
            if chosen is None or found is None:
                continue
            _, program, problem = found
            if found[0] != chosen[0] and program.promote != chosen[1].promote:
                continue
            answer = gemm.estimate(program, problem, board)
            mark = "*" if row == chosen[0] else " "
            say(
                f"{name:16s} {options.m:6d} x {n} x {k}  row {row:2d}{mark} splits "
                f"{program.splits}  {answer.us:9.1f} us  {answer.tflops:7.1f} TFLOP/s  tensor "
                f"{answer.tensor_busy:4.0%}  bytes alone {answer.memory_us:7.1f} us"
            )


def report_attention(options: argparse.Namespace) -> None:
    clock = options.clock or rates.constants()["attention"]["clock"]["value"]
    board = rates.machine(options.gpu, clock)
    o = options
    fp8 = o.format == "fp8"
    shape, work = headers.prefill(o.tokens, o.heads, o.kv_heads, o.chunk, fp8, board.sms)
    us, tflops = attention.estimate(shape, work, board)
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
    groups: dict[str, Callable[[rates.Row], bool]] = {
        g["name"]: lambda r, g=g: r.group == g["name"] for g in rates.groups()
    }
    groups["held out"] = lambda r: r.use == "held out"
    groups["all"] = lambda r: True
    for name, belongs in groups.items():
        every = [r for r in rows if belongs(r)]
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
    product = commands.add_parser("gemm", help="rows of configs.h")
    prompt = commands.add_parser("attention", help="flash_prefill, one sequence")
    published = commands.add_parser("rates", help="errors against published rates")
    for board in (product, prompt):
        board.add_argument("--gpu", choices=sorted(rates.constants()["gpu"]), default="h100")
        board.add_argument("--clock", type=float, help="MHz")
    product.add_argument("--format", choices=["bf16", "fp8", "fp8_fast"], default="bf16")
    prompt.add_argument("--format", choices=["bf16", "fp8"], default="bf16")
    for name in ("--n", "--k", "--experts", "--config"):
        product.add_argument(name, type=int)
    product.add_argument("--m", type=int, default=8192)
    sizes = {"--tokens": 8192, "--heads": 40, "--kv-heads": 8, "--chunk": 0}
    for name, default in sizes.items():
        prompt.add_argument(name, type=int, default=default)
    published.add_argument("--rows", action="store_true")
    options = parser.parse_args()
    if options.command == "gemm" and (options.n is None) != (options.k is None):
        parser.error("--n and --k go together; without them: Llama 4 Scout's products")
    {"gemm": report_gemm, "attention": report_attention, "rates": report_rates}[options.command](
        options
    )


if __name__ == "__main__":
    main()
