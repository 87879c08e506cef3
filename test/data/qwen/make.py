"""The zoo's qwen2 and qwen3 as GGUF files, written by the gguf package with llama.cpp's names. Run: python make.py"""
import json
from pathlib import Path

import gguf
from safetensors.numpy import load_file

here = Path(__file__).parent
names = {
    'input_layernorm': 'attn_norm', 'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v', 'self_attn.o_proj': 'attn_output',
    'self_attn.q_norm': 'attn_q_norm', 'self_attn.k_norm': 'attn_k_norm', 'post_attention_layernorm': 'ffn_norm',
    'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down',
}
for model in ['qwen2', 'qwen3']:
    source = here.parent / 'zoo' / model
    config = json.loads((source / 'config.json').read_text())
    writer = gguf.GGUFWriter(here / f'{model}.gguf', model)
    writer.add_context_length(config['max_position_embeddings'])
    writer.add_embedding_length(config['hidden_size'])
    writer.add_block_count(config['num_hidden_layers'])
    writer.add_feed_forward_length(config['intermediate_size'])
    writer.add_head_count(config['num_attention_heads'])
    writer.add_head_count_kv(config['num_key_value_heads'])
    writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
    writer.add_rope_freq_base(config['rope_parameters']['rope_theta'])
    if 'head_dim' in config:
        writer.add_key_length(config['head_dim'])
        writer.add_value_length(config['head_dim'])
    writer.add_vocab_size(config['vocab_size'])
    for name, tensor in load_file(source / 'model.safetensors').items():
        if name.startswith('model.layers.'):
            _, _, layer, rest = name.split('.', 3)
            module, kind = rest.rsplit('.', 1)
            name = f'blk.{layer}.{names[module]}.{kind}'
        else:
            name = {'model.embed_tokens.weight': 'token_embd.weight', 'model.norm.weight': 'output_norm.weight', 'lm_head.weight': 'output.weight'}[name]
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
