"""frequencies.json: rotation speeds that transformers 5 computes for config.json objects in both spellings.  python make.py"""
import json
import pathlib
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

base = dict(model_type='llama', hidden_size=128, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=31, max_position_embeddings=4096, rms_norm_eps=1e-5)
yarn = dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=512)
cases = {
    'default, neither spelling': {},
    'default, old spelling': dict(rope_theta=500000.0, rope_scaling=None),
    'default, new spelling': dict(rope_parameters=dict(rope_type='default', rope_theta=100000.0), head_dim=22),
    'linear, type': dict(rope_theta=10000.0, rope_scaling=dict(type='linear', factor=3.0)),
    'linear, new spelling': dict(rope_parameters=dict(rope_type='linear', rope_theta=20000.0, factor=2.5)),
    'llama3': dict(rope_theta=500000.0, rope_scaling=dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=1024)),
    'llama3, length beside': dict(original_max_position_embeddings=700, rope_parameters=dict(rope_type='llama3', rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=1024)),
    'yarn': dict(rope_theta=10000.0, rope_scaling=yarn),
    'yarn, length from maximum': dict(rope_parameters=dict(rope_type='yarn', rope_theta=10000.0, factor=4.0)),
    'yarn, attention factor': dict(rope_theta=10000.0, rope_scaling=dict(yarn, attention_factor=0.75)),
    'yarn, mscale': dict(rope_theta=10000.0, rope_scaling=dict(yarn, factor=40.0, mscale=1.0, mscale_all_dim=0.8)),
    'yarn, betas, not truncated': dict(rope_theta=50000.0, head_dim=34, rope_scaling=dict(yarn, beta_fast=16.0, beta_slow=2.0, truncate=False)),
}
out = []
for name, rope in cases.items():
    raw = {**base, **rope}
    module = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(raw))))
    out.append(dict(name=name, config=raw, frequencies=module.inv_freq.tolist(), attentionFactor=module.attention_scaling))
(pathlib.Path(__file__).parent / 'frequencies.json').write_text(json.dumps(out, indent=1) + '\n')
