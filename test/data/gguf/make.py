"""Fixtures of test/gguf.test.ts, by llama.cpp's own Python package:  python make.py   (gguf 0.19, numpy, safetensors)

formats.gguf holds one tensor per block format, formats.safetensors what gguf.dequantize makes of it.
llama.gguf is a one-layer model with q and k rows as llama.cpp's converter stores them; llama.safetensors the rows before.
"""
import pathlib
import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

here = pathlib.Path(__file__).parent
rng = np.random.default_rng(7)

# K formats have no quantiser in Python: random bytes with the half-width scales (their offsets follow) made finite.
SCALES = {T.Q2_K: (80, 82), T.Q3_K: (108,), T.Q4_K: (0, 2), T.Q5_K: (0, 2), T.Q6_K: (208,)}
writer = gguf.GGUFWriter(here / 'formats.gguf', 'llama')
expected = {}
for t in [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, *SCALES]:
    block, size = gguf.GGML_QUANT_SIZES[t]
    if t in SCALES:
        data = rng.integers(0, 256, (3, 2 * size), dtype=np.uint8)
        for b in range(2):
            for offset in SCALES[t]:
                at = b * size + offset
                data[:, at:at + 2] = rng.normal(0, 0.1, (3, 1)).astype(np.float16).view(np.uint8)
    else:
        data = gguf.quantize(rng.normal(0, 2, (5, 96)).astype(np.float32), t)
    raw = data if data.dtype in (np.float32, np.float16) else data.view(np.uint8)
    writer.add_tensor(t.name, raw, raw_dtype=t)
    expected[t.name] = np.ascontiguousarray(gguf.dequantize(data, t).astype(np.float32))
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
save_file(expected, here / 'formats.safetensors')

HIDDEN, HEADS, KV, WIDTH, FFN, VOCAB = 32, 3, 1, 8, 64, 37

def permute(w, heads):  # LlamaModel.permute of convert_hf_to_gguf.py
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)

normal = lambda *shape: rng.normal(0, 1, shape).astype(np.float32)
p = 'model.layers.0.'
# Hugging Face name -> (GGUF name, values, type, heads whose rows are permuted)
tensors = {
    'model.embed_tokens.weight': ('token_embd.weight', normal(VOCAB, HIDDEN), T.Q8_0, None),
    'model.norm.weight': ('output_norm.weight', normal(HIDDEN), T.F32, None),
    'lm_head.weight': ('output.weight', normal(VOCAB, HIDDEN), T.Q4_0, None),
    p + 'input_layernorm.weight': ('blk.0.attn_norm.weight', normal(HIDDEN), T.F32, None),
    p + 'self_attn.q_proj.weight': ('blk.0.attn_q.weight', normal(HEADS * WIDTH, HIDDEN), T.Q8_0, HEADS),
    p + 'self_attn.q_proj.bias': ('blk.0.attn_q.bias', normal(HEADS * WIDTH), T.F32, HEADS),
    p + 'self_attn.k_proj.weight': ('blk.0.attn_k.weight', normal(KV * WIDTH, HIDDEN), T.F16, KV),
    p + 'self_attn.k_proj.bias': ('blk.0.attn_k.bias', normal(KV * WIDTH), T.F32, KV),
    p + 'self_attn.v_proj.weight': ('blk.0.attn_v.weight', normal(KV * WIDTH, HIDDEN), T.F16, None),
    p + 'self_attn.v_proj.bias': ('blk.0.attn_v.bias', normal(KV * WIDTH), T.F32, None),
    p + 'self_attn.o_proj.weight': ('blk.0.attn_output.weight', normal(HIDDEN, HEADS * WIDTH), T.BF16, None),
    p + 'post_attention_layernorm.weight': ('blk.0.ffn_norm.weight', normal(HIDDEN), T.F32, None),
    p + 'mlp.gate_proj.weight': ('blk.0.ffn_gate.weight', normal(FFN, HIDDEN), T.Q5_1, None),
    p + 'mlp.up_proj.weight': ('blk.0.ffn_up.weight', normal(FFN, HIDDEN), T.F32, None),
    p + 'mlp.down_proj.weight': ('blk.0.ffn_down.weight', normal(HIDDEN, FFN), T.Q4_1, None),
}
writer = gguf.GGUFWriter(here / 'llama.gguf', 'llama')
writer.add_block_count(1); writer.add_context_length(131072); writer.add_embedding_length(HIDDEN)
writer.add_feed_forward_length(FFN); writer.add_head_count(HEADS); writer.add_head_count_kv(KV)
writer.add_key_length(WIDTH); writer.add_value_length(WIDTH); writer.add_rope_dimension_count(WIDTH)
writer.add_rope_freq_base(500000.0); writer.add_layer_norm_rms_eps(1e-5)
writer.add_bos_token_id(3); writer.add_eos_token_id(5); writer.add_eot_token_id(7)
writer.add_token_list(['a', 'ä', '<|end|>']); writer.add_array('test.numbers', [2, 3, 5]); writer.add_bool('test.bool', True)
writer.add_uint64('test.large', 2**63 + 1); writer.add_int64('test.negative', -17)
# Llama 3 scaling by 8 with 1, 4 and 8192, as LlamaModel.generate_extra_tensors computes it.
w = 1.0 / 500000.0 ** (np.arange(0, WIDTH, 2, dtype=np.float32) / WIDTH)
length = 2 * np.pi / w
smooth = (8192 / length - 1) / 3
factors = np.where(length < 2048, 1, np.where(length > 8192, 8, 1 / ((1 - smooth) / 8 + smooth)))
writer.add_tensor('rope_freqs.weight', factors.astype(np.float32))
expected = {}
for name, (ggufName, values, t, heads) in tensors.items():
    data = gguf.quantize(values if heads is None else permute(values, heads), t)
    writer.add_tensor(ggufName, data if data.dtype in (np.float32, np.float16) else data.view(np.uint8), raw_dtype=t)
    expected[name] = np.ascontiguousarray(gguf.dequantize(gguf.quantize(values, t), t).astype(np.float32).reshape(values.shape))
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
save_file(expected, here / 'llama.safetensors')
