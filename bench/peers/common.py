"""What the Python peers share: arguments, peak memory, one line of JSON."""
import argparse
import json
import re
import time
from pathlib import Path


def arguments(**more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("model", "tokens", "contexts"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    for name, default in more.items():
        parser.add_argument(f"--{name}", default=default)
    args = parser.parse_args()
    args.contexts = [int(length) for length in args.contexts.split(",")]
    args.tokens = json.loads(Path(args.tokens).read_text())
    return args


def peak_mb() -> float:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1000


def timed(work) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(tokens: int, prefill: float, steps: list[float]) -> dict:
    """Seconds of the prompt and of every step -> what the table shows."""
    return {"tokens": tokens, "prefillTokensPerSecond": tokens / prefill, "stepMs": 1000 * sorted(steps)[len(steps) // 2]}


def report(versions: dict, rows: list[dict]) -> None:
    print(json.dumps({"versions": versions, "rows": rows, "peakMb": peak_mb()}))
