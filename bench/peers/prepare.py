"""prepare.py MODEL.gguf TEXT OUT: one model in every peer's format.

OUT/hf (float32, Hugging Face), OUT/Q4_0.gguf and OUT/Q8_0.gguf (from the same numbers), OUT/genai-fp32 and OUT/genai-int4
(onnxruntime-genai), OUT/tokens.json (the first 9,000 ids of TEXT). What is there already is kept.
"""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize, quantize

TOKENS = 9000
FILE_TYPES = {"Q4_0": 2, "Q8_0": 7}


def to_hugging_face(source: Path, out: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype="float32")
    del model.config.quantization_config  # the numbers are plain by now
    model.hf_quantizer = None
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(out)


def requantise(source: Path, out: Path, name: str) -> None:
    """Every matrix of `source` in another type; norms stay float32, the embedding (which is the head) 8 bits as llama.cpp has it."""
    reader = GGUFReader(source)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = FILE_TYPES[name] if key == "general.file_type" else field.contents()
        kind = field.types[0]
        writer.add_key_value(key, value, kind, sub_type=field.types[-1] if kind == GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        kind = "F32" if values.ndim < 2 else "Q8_0" if tensor.name == "token_embd.weight" else name
        writer.add_tensor(tensor.name, quantize(values, GGMLQuantizationType[kind]), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(source: Path, text: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    hf = out / "hf"
    if not (hf / "config.json").exists():
        to_hugging_face(source, hf)
    for name in FILE_TYPES:
        if not (out / f"{name}.gguf").exists():
            requantise(source, out / f"{name}.gguf", name)
    for precision in ("fp32", "int4"):
        folder = out / f"genai-{precision}"
        if not (folder / "model.onnx").exists():
            builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "peer", "-i", str(hf), "-o", str(folder), "-p", precision, "-e", "cpu", "-c", str(out / "hub")]
            subprocess.run(builder, check=True)
    if not (out / "tokens.json").exists():
        from tokenizers import Tokenizer

        ids = Tokenizer.from_file(str(hf / "tokenizer.json")).encode(text.read_text(encoding="utf8"), add_special_tokens=False).ids
        if len(ids) < TOKENS:
            raise SystemExit(f"prepare: {text} must have {TOKENS} tokens or more, got {len(ids)}")
        (out / "tokens.json").write_text(json.dumps(ids[:TOKENS]))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:]))
