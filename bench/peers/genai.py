"""onnxruntime-genai: a prompt and greedy tokens behind it, by length."""
import json

import numpy as np
import onnxruntime
import onnxruntime_genai as og

from common import arguments, report, row, timed

args = arguments()
config = og.Config(args.model)
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": args.threads}}}}))
model = og.Model(config)


def generator(tokens: int) -> og.Generator:
    params = og.GeneratorParams(model)
    length = tokens + args.steps + 8
    params.set_search_options(max_length=length, min_length=length - 4, do_sample=False, batch_size=1)
    return og.Generator(model, params)


def prompt(ids: list[int]) -> og.Generator:
    made = generator(len(ids))
    made.append_tokens(np.array([ids], dtype=np.int32))
    made.generate_next_token()
    return made


prompt(args.tokens[:32])
rows = []
for length in args.contexts:
    found = []
    prefill = timed(lambda: found.append(prompt(args.tokens[:length])))
    rows.append(row(length, prefill, [timed(found[0].generate_next_token) for _ in range(args.steps)]))
    del found
report({"onnxruntime-genai": og.__version__, "onnxruntime": onnxruntime.__version__}, rows)
