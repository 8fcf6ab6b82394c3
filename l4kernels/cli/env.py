"""`l4k env`."""

from l4kernels.cli.output import console, facts, print_json
from l4kernels.env import MINIMUM_DRIVER, report


def run(*, as_json: bool) -> None:
    found = report()
    if as_json:
        print_json(found)
        return
    gpus = [
        f"{gpu['name']}, capability {gpu['capability']}, "
        f"{gpu['memory_free'] / 1e9:.1f} of {gpu['memory_total'] / 1e9:.1f} GB free"
        for gpu in found["gpus"]
    ]
    library = found["library"]
    state = library["path"] if library["loaded"] else f"not loaded: {library['reason']}"
    driver = found["driver"] or "none"
    if found["driver"] and int(found["driver"].split(".")[0]) < MINIMUM_DRIVER:
        driver += f" (too old: {MINIMUM_DRIVER} or newer is needed)"
    facts(
        [
            ("l4kernels", found["l4kernels"]),
            ("python", f"{found['python']} ({found['executable']})"),
            ("platform", found["platform"]),
            ("torch", f"{found['torch']}, CUDA {found['torch_cuda'] or 'not built in'}"),
            ("driver", driver),
            ("GPU", "; ".join(gpus) or "none"),
            ("library", state),
            *(
                (f"extra {extra}", ", ".join(f"{n} {v or 'missing'}" for n, v in names.items()))
                for extra, names in found["packages"].items()
            ),
        ]
    )
    kernels = found["kernels"]
    active = [name for name, state in kernels.items() if state["active"] == "cuda"]
    console.print(f"\n[bold]{len(active)} of {len(kernels)} ops run on CUDA kernels[/bold]")
    reasons: dict[str, list[str]] = {}
    for name, state in kernels.items():
        reasons.setdefault(state["reason"] or "cuda", []).append(name)
    for reason, names in reasons.items():
        console.print(f"  {reason}: {', '.join(names)}", markup=False, soft_wrap=True)
