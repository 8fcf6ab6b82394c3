"""`l4k env`."""

from typing import Any

from l4kernels import __version__
from l4kernels.cli.output import facts, line, print_json, styled
from l4kernels.planning.machine import MINIMUM_DRIVER, report


def run(*, as_json: bool) -> None:
    found = {"l4kernels": __version__, **report()}
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
            ("CPU", _cpu(found["cpu"])),
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
    line()
    line(styled(f"{len(active)} of {len(kernels)} ops run on CUDA kernels", "bold"))
    reasons: dict[str, list[str]] = {}
    for name, state in kernels.items():
        reasons.setdefault(state["reason"] or "cuda", []).append(name)
    for reason, names in reasons.items():
        line(f"  {reason}: {', '.join(names)}")


def _cpu(cpu: dict[str, Any]) -> str:
    cores = f"{cpu['usable_cores']} of {cpu['cores']} cores usable"
    if cpu["user_setting"]:
        return f"{cores}, threads by {cpu['user_setting']}: {cpu['max_threads']}"
    per_thread = cpu["weights_per_thread"] >> 20
    return f"{cores}, a thread per {per_thread} MiB of weights, at most {cpu['max_threads']}"
