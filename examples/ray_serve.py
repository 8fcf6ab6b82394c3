"""Several GPUs, each with a model of its own, behind one address: the server in Ray Serve.

    pip install 'l4kernels[cli,vision,serve]' 'ray[serve]'    # tried with Ray 2.60
    python examples/ray_serve.py CHECKPOINT --replicas 8 --weights fp8

Ray starts the replicas, sends each request to one that is free, asks `check_health` of each every
few seconds and replaces those that fail. The protocol is that of `l4k serve`. Without CHECKPOINT
the shipped one answers, on the CPU with `--gpus 0`.
"""

import argparse
import importlib.util
import time
from pathlib import Path
from typing import Any

import torch

import l4kernels
from l4kernels.demo import CHECKPOINT
from l4kernels.server.app import create_app
from l4kernels.server.options import ServerOptions


class Replica:
    """A model, its engine and the application over it, in a process of its own.

    Args:
        folder: a checkpoint, at the same path on every machine.
        options: arguments of `Llama4.from_pretrained`.
        name: what requests call the model.
    """

    def __init__(self, folder: str, options: dict[str, Any], name: str):
        device = "cuda" if torch.cuda.is_available() else "cpu"  # Ray shows a replica its own GPU
        self.prompter = l4kernels.Prompter(folder)
        model = l4kernels.Llama4.from_pretrained(folder, device=device, **options)
        self.engine = l4kernels.Engine(model, tokenizer=self.prompter.tokenizer)
        self.options = ServerOptions(name)

    def __serve_build_asgi_app__(self) -> Any:  # Ray calls it after __init__
        return create_app(self.engine, self.prompter, self.options)

    def check_health(self) -> None:
        """Raises where the engine answers no more; Ray then starts another replica."""
        if self.engine.closed is not None:
            raise RuntimeError(self.engine.closed)
        request = l4kernels.Request([1], max_new_tokens=1, priority=-1)
        self.engine.add(request).result()

    def __del__(self) -> None:
        self.engine.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=str(CHECKPOINT))
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=1, help="of each replica")
    parser.add_argument("--weights", help="bf16, fp8, int4 ...: quantised at load")
    parser.add_argument("--name", help="of the model; without it the folder's")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if importlib.util.find_spec("ray") is None:
        print("this example needs Ray, which is not installed: pip install 'ray[serve]'")
        return
    from ray import serve

    folder = Path(options.checkpoint).resolve()
    deployment = serve.deployment(
        serve.ingress()(Replica),
        num_replicas=options.replicas,
        max_ongoing_requests=256,  # each engine runs 64 answers at once, the others wait
        health_check_period_s=5,
        graceful_shutdown_timeout_s=60,
        ray_actor_options={"num_gpus": options.gpus},
    )
    serve.start(http_options={"host": options.host, "port": options.port})
    name = options.name or folder.name
    serve.run(deployment.bind(str(folder), {"weights": options.weights}, name), name="l4kernels")
    print(f"{name} at http://{options.host}:{options.port}/v1, {options.replicas} replicas")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("ending")
    finally:
        serve.shutdown()


if __name__ == "__main__":
    main()
