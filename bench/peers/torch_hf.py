"""transformers on PyTorch: a prompt and greedy tokens behind it, by length. --dtype float32 or bfloat16."""
import os

from common import arguments, report, row, timed

args = arguments(dtype="float32")
os.environ["OMP_NUM_THREADS"] = str(args.threads)

import torch  # noqa: E402  (after the number of threads)
import transformers  # noqa: E402

torch.set_num_threads(args.threads)
torch.set_grad_enabled(False)
model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).eval()


class Decoding:
    """The cache, and the token that comes next."""

    def __init__(self) -> None:
        self.cache = transformers.DynamicCache(config=model.config)
        self.next = torch.zeros((1, 1), dtype=torch.long)

    def feed(self, ids: torch.Tensor) -> None:
        self.next = model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)


Decoding().feed(torch.tensor([args.tokens[:32]]))
rows = []
for length in args.contexts:
    decoding = Decoding()
    prefill = timed(lambda: decoding.feed(torch.tensor([args.tokens[:length]])))
    rows.append(row(length, prefill, [timed(lambda: decoding.feed(decoding.next)) for _ in range(args.steps)]))
    del decoding
report({"torch": torch.__version__, "transformers": transformers.__version__}, rows)
