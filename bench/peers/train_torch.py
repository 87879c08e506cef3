"""transformers on PyTorch: forward with loss, and whole updates (forward, backward, AdamW, clipping) on one sequence, float32."""
import argparse
import json
import os
from pathlib import Path

from common import peak_mb, timed

parser = argparse.ArgumentParser()
for name in ("model", "tokens", "length", "threads", "steps"):
    parser.add_argument(f"--{name}", required=True)
args = parser.parse_args()
length, steps = int(args.length), int(args.steps)
os.environ["OMP_NUM_THREADS"] = args.threads

import torch  # noqa: E402  (after the number of threads)
import transformers  # noqa: E402

torch.set_num_threads(int(args.threads))
tokens = json.loads(Path(args.tokens).read_text())
ids, targets = torch.tensor([tokens[:length]]), torch.tensor([tokens[1 : length + 1]])
model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)


def loss() -> torch.Tensor:
    logits = model(ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[0], targets[0])


def forward() -> None:
    with torch.no_grad():
        loss()


optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def update() -> None:
    optimiser.zero_grad(set_to_none=True)
    loss().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


def rate(run) -> float:
    run()
    return length / sorted(timed(run) for _ in range(steps))[steps // 2]


forward_rate, update_rate = rate(forward), rate(update)
print(json.dumps({"versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "forward": forward_rate, "update": update_rate, "peakMb": peak_mb()}))
