"""How time and memory grow: 1, 2 and 4 times the rows, the answers, the inputs of a served model.

    python benchmarks/growth.py [--quick] [CASE ...]

Every measurement has a process of its own. ``write``, ``read``, ``resume``: a results file of up to 10^6
answers, written, read into records, and repaired and appended to. ``retrieve`` and ``near``: BM25 of every
prompt against a pool that grows alike, and the near duplicates of the leakage report, on prompts of random
words in a few templates. ``served``: persona inference inputs, up to 100,000, through the client of served
models against a stub server in another process; ``again``: the same inputs when all answers are in the
ledger. ``arms``: prompts times arms, adapters switched on one small base; ``train``: rows of an SFT epoch.
The exponent is the slope of log seconds over log n from the smallest to the largest: 1 is linear, and more
than 1.2 is said. Retrieval compares every query with the whole pool: its n are the pairs.

Writes ``tables/growth.csv``, ``.md`` and ``.png``, each case as soon as it is measured; ``--quick`` has a
hundredth of the sizes and writes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import dataclasses
import datetime
import itertools
import json
import math
import multiprocessing
import random
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import measure
from harness import HERE

from persona_lib import store
from persona_lib.config import set_field

WORSE = 1.2  # exponent from which growth counts as worse than linear
MEAN_WORDS = 30


def texts(n: int, seed: int = 0) -> list[str]:
    """Return prompts of a few templates around random words."""
    rng = random.Random(seed)
    words = [f"w{number}" for number in range(5000)]
    templates = ("How do I {} my new {} after the {}?", "What is the best way to {} a {} in {}?")
    return [rng.choice(templates).format(*rng.choices(words, k=3)) for _ in range(n)]


# --- what is measured: each gets n and a folder, and returns (seconds, items) ---


def answers(n: int) -> Iterator[Any]:
    """Yield n answers of generation."""
    from persona_lib.records import Generation

    said = " ".join(["word"] * MEAN_WORDS)
    for i in range(n):
        yield Generation(f"row-{i}", "run", f"prompt {i}", "persona", said, "stop", MEAN_WORDS)


def write(n: int, folder: Path) -> tuple[float, int]:
    """Append n answers in batches of 160, as generation does."""
    rows = answers(n)
    started = time.perf_counter()
    while batch := list(itertools.islice(rows, 160)):
        store.append_rows(folder / "rows.jsonl", batch)
    return time.perf_counter() - started, n


def read(n: int, folder: Path) -> tuple[float, int]:
    """Read n answers into records."""
    from persona_lib.records import Generation

    store.append_rows(folder / "rows.jsonl", answers(n))
    started = time.perf_counter()
    found = store.read_rows(folder / "rows.jsonl", Generation)
    seconds = time.perf_counter() - started
    assert len(found) == n
    return seconds, n


def resume(n: int, folder: Path) -> tuple[float, int]:
    """Cut a torn line off a file of n answers, find which are answered and append one, three times."""
    path = folder / "rows.jsonl"
    store.append_rows(path, answers(n))
    started = time.perf_counter()
    for _ in range(3):
        with path.open("a", encoding="utf-8") as file:
            file.write('{"id": "torn')
        store.repair_rows(path)
        answered = set(store.row_ids(path))
        store.append_rows(path, [{"id": f"next-{len(answered)}"}])
    seconds = time.perf_counter() - started
    assert len(answered) == n + 2
    return seconds, 3 * n


def retrieve(n: int, folder: Path) -> tuple[float, int]:
    """Retrieve the nearest of n prompts for n others."""
    from persona_lib.data import retrieval

    pool = list(enumerate(texts(n, 1)))
    queries = [(-1 - number, text) for number, text in enumerate(texts(n, 2))]
    started = time.perf_counter()
    retrieval.retrieve(queries, pool)
    return time.perf_counter() - started, n * n


def near(n: int, folder: Path) -> tuple[float, int]:
    """Find near duplicates of n prompts among n others."""
    from persona_lib.data.near import near_duplicates

    first, second = texts(n, 1), texts(n, 2)
    started = time.perf_counter()
    near_duplicates(first, second, 0.9)
    return time.perf_counter() - started, n


def stub_server(port: Any) -> None:
    """Serve completions: a fixed answer, kept connections, nothing else."""
    answer = {"id": "x", "object": "text_completion", "created": 0, "model": "stub",
              "choices": [{"index": 0, "text": "The user is terse.", "finish_reason": "stop"}],
              "usage": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}}  # fmt: skip
    body = json.dumps(answer).encode()
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    reply = f"{head}{len(body)}\r\n\r\n".encode() + body

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the client has gone
            while request := await reader.readuntil(b"\r\n\r\n"):
                found = re.search(rb"(?i)content-length: *(\d+)", request)
                await reader.readexactly(int(found[1]))
                writer.write(reply)
                await writer.drain()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def ask(n: int, folder: Path, url: str) -> float:
    """Ask n persona-inference prompts through the client; return the seconds."""
    from persona_lib.models.endpoint import EndpointGenerator
    from persona_lib.models.protocol import Endpoint

    generator = EndpointGenerator(Endpoint(url, "stub", "completions"), folder / "answers.jsonl")
    prefix = "An example of some length. " * 100
    prompts = [f"Prompt {i}: {'word ' * MEAN_WORDS}\nPersona:" for i in range(n)]
    started = time.perf_counter()
    count = sum(1 for _ in generator.generate(prompts, 24, ("\n",), prefix=prefix))
    assert count == n
    return time.perf_counter() - started


def served(n: int, folder: Path) -> tuple[float, int]:
    """Ask the stub server for n answers."""
    context = multiprocessing.get_context("spawn")
    port = context.SimpleQueue()
    server = context.Process(target=stub_server, args=(port,), daemon=True)
    server.start()
    try:
        return ask(n, folder, f"http://127.0.0.1:{port.get()}/v1"), n
    finally:
        server.terminate()
        server.join()


def again(n: int, folder: Path) -> tuple[float, int]:
    """Ask for n answers that are in the ledger already: no server is there."""
    from persona_lib.models.protocol import Answer, Endpoint, request_body, request_id

    url, prefix = "http://127.0.0.1:9/v1", "An example of some length. " * 100
    endpoint = Endpoint(url, "stub", "completions")
    prompts = (f"Prompt {i}: {'word ' * MEAN_WORDS}\nPersona:" for i in range(n))
    names = (request_id(endpoint, request_body(endpoint, prefix + text, 24, ("\n",))) for text in prompts)
    store.append_rows(
        folder / "answers.jsonl",
        (Answer(name, "stub", "The user is terse.", "stop", 10, 4, 0.0) for name in names),
    )
    return ask(n, folder, url), n


def arms(n: int, folder: Path) -> tuple[float, int]:
    """Answer 32 prompts with each of n arms: adapters that are switched on one small base."""
    import llama31
    import torch
    from peft import LoraConfig, get_peft_model

    from persona_lib.models import llm
    from persona_lib.models.generate import TransformersGenerator

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    base = llama31.save_llama(folder / "base", llama31.example_texts(), **sizes)
    settings = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model, tokenizer = get_peft_model(llm.load_base(base), settings, "arm-0"), llm.load_tokenizer(base)
    for number in range(1, n):
        model.add_adapter(f"arm-{number}", settings)
    prompts = texts(32)
    started = time.perf_counter()
    for number in range(n):
        generator = TransformersGenerator(model, tokenizer, "tiny", 16, [f"arm-{number}"])
        assert len(list(generator.generate(prompts, 32, (), min_new_tokens=32))) == 32
    return time.perf_counter() - started, n * 32


def train(n: int, folder: Path) -> tuple[float, int]:
    """Train one SFT epoch on n rows of the lengths of ``everyday``."""
    import sft_epoch
    from training_rows import make_kind

    kind = make_kind("everyday", False)
    kind = dataclasses.replace(kind, profile=set_field(kind.profile, **sft_epoch.SETTINGS))
    return sft_epoch.unpacked(kind, sft_epoch.datasets(kind, "sft", n)).seconds, n


CASES: dict[str, tuple[Callable[[int, Path], tuple[float, int]], int, str]] = {
    "write": (write, 250_000, "answers appended, 160 at a time"),
    "read": (read, 250_000, "answers read into records"),
    "resume": (resume, 250_000, "answers in a file that a killed run goes on with"),
    "retrieve": (retrieve, 1_000, "BM25, pairs of query and pool row"),
    "near": (near, 5_000, "prompts searched for near duplicates"),
    "served": (served, 25_000, "inputs asked of a served model"),
    "again": (again, 25_000, "inputs whose answers are kept"),
    "arms": (arms, 4, "prompts x arms answered"),
    "train": (train, 192, "rows of an SFT epoch"),
}


def measured(name: str, n: int) -> tuple[float, int, float]:
    """Return (seconds, items, peak resident MB of this process) of one case."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, items = CASES[name][0](n, Path(folder))
    return seconds, items, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def alone(name: str, n: int) -> tuple[float, int, float]:
    """Measure in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, name, n).result()


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the slope of log seconds over log size from the first to the last."""
    return math.log(seconds[-1] / seconds[0]) / math.log(sizes[-1] / sizes[0])


def grow(name: str, quick: bool) -> list[dict[str, Any]]:
    """Measure a case at 1, 2 and 4 times its size."""
    smallest = max(1, CASES[name][1] // 100) if quick else CASES[name][1]
    found = [alone(name, times * smallest) for times in (1, 2, 4)]
    slope = exponent([items for _, items, _ in found], [seconds for seconds, _, _ in found])
    rows = [
        {"case": name, "what": CASES[name][2], "n": items, "s": seconds, "us per item": 1e6 * seconds / items,
         "peak MB": peak, "date": f"{datetime.date.today()}", "exponent": slope}
        for seconds, items, peak in found
    ]  # fmt: skip
    print(f"{name}: {measure.markdown(rows)}", flush=True)
    if slope > WORSE and not quick:
        print(f"{name}: worse than linear")
    return rows


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw seconds per item, relative to the smallest size, and memory over the size."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    markers = "osD^vx*P+"
    for marker, name in zip(markers, dict.fromkeys(row["case"] for row in rows), strict=False):
        part = [row for row in rows if row["case"] == name]
        times = [row["n"] / part[0]["n"] for row in part]
        left.plot(
            times, [row["us per item"] / part[0]["us per item"] for row in part], f"{marker}-", label=name
        )
        right.plot(times, [row["peak MB"] for row in part], f"{marker}-")
    left.axhline(1, color="0.6", linewidth=0.8)
    left.set(xlabel="size, smallest = 1", ylabel="time per item, smallest size = 1", ylim=(0, 2))
    right.set(xlabel="size, smallest = 1", ylabel="peak resident memory, MB")
    left.legend(frameon=False, fontsize=7, ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def keep(rows: Sequence[dict[str, Any]]) -> None:
    """Put the rows of a case into the table, in place of earlier ones of that case, and draw it again."""
    kept: dict[str, list[dict[str, Any]]] = {name: [] for name in CASES}
    if (path := HERE / "tables" / "growth.csv").exists():
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            numbers = {name: float(row[name]) for name in ("s", "us per item", "peak MB", "exponent")}
            kept[row["case"]].append(row | numbers | {"n": int(row["n"])})
    kept[rows[0]["case"]] = [*rows]
    notes = [f"{name}: {CASES[name][0].__doc__}" for name in CASES if kept[name]]
    notes += ["", "Sizes 1, 2 and 4 times the smallest; an exponent of 1 is linear."]
    notes += ["", "![growth](growth.png)"]
    table = [row for name in CASES for row in kept[name]]
    measure.write_tables(path.with_suffix(""), "How time and memory grow", notes, table)
    draw(table, path.with_suffix(".png"))


def main() -> None:
    """Measure, print, and keep what each case gave as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}: use some of {', '.join(CASES)}")
    for name in arguments.cases or CASES:
        rows = grow(name, arguments.quick)
        if not arguments.quick:
            keep(rows)


if __name__ == "__main__":
    main()
