"""Twenty steps of training the zoo's llama-gqa-tied in PyTorch: test/data/train/golden.json.

python make.py   (torch 2.x, transformers 4.57 or later; CPU, float32, one thread)
AdamW betas .9/.95, eps 1e-8, decay 0.1 on matrices only, gradients clipped to norm 1, two micro-batches per update,
linear warm-up over 4 updates, constant, then 1 - sqrt over the last fifth of the 16 that follow.
"""
import json, math, pathlib, random
import torch
from transformers import AutoModelForCausalLM

here = pathlib.Path(__file__).parent
torch.manual_seed(0)
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(here.parent / 'zoo' / 'llama-gqa-tied', dtype=torch.float32, attn_implementation='eager')
model.train()
model.get_input_embeddings().padding_idx = None  # token 0 is a token here: its row learns like any other
STEPS, MICRO, BATCH, LENGTH, WARMUP, PEAK, DECAY = 20, 2, 2, 29, 4, 3e-3, 0.1
source = random.Random(5)
tokens, x = [], 3
for _ in range(STEPS * MICRO * BATCH * LENGTH + 1):
    x = (x * 5 + source.choice([1, 1, 1, 2])) % model.config.vocab_size
    tokens.append(x)
matrices = [p for p in model.parameters() if p.dim() > 1]
vectors = [p for p in model.parameters() if p.dim() <= 1]
optimiser = torch.optim.AdamW([dict(params=matrices, weight_decay=DECAY), dict(params=vectors, weight_decay=0.0)], lr=PEAK, betas=(0.9, 0.95), eps=1e-8)

def factor(step):
    if step < WARMUP:
        return (step + 1) / WARMUP
    done = (step - WARMUP) / (STEPS - WARMUP)
    return 1 - math.sqrt(max(0.0, (done - 0.8) / 0.2))

losses, norms, at = [], [], 0
for step in range(STEPS):
    for group in optimiser.param_groups:
        group['lr'] = PEAK * factor(step)
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for _ in range(MICRO):
        rows = [tokens[at + b * LENGTH: at + (b + 1) * LENGTH + 1] for b in range(BATCH)]
        at += BATCH * LENGTH
        batch = torch.tensor(rows)
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1)) / MICRO
        loss.backward()
        total += loss.item()
    norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
    optimiser.step()
    losses.append(total)
named = dict(model.named_parameters())
probe = 'model.layers.1.mlp.down_proj.weight'
golden = dict(
    torch=torch.__version__, steps=STEPS, micro=MICRO, batch=BATCH, sequenceLength=LENGTH, warmupSteps=WARMUP, learningRate=PEAK, weightDecay=DECAY,
    tokens=tokens, losses=losses, gradientNorms=norms, weight=probe, row=named[probe][0].tolist(),
)
(here / 'golden.json').write_text(json.dumps(golden) + '\n')
print(losses[0], losses[-1], norms[0])
