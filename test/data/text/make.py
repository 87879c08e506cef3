"""python make.py: the tokenizer fixtures of test/text.test.ts, in this directory.

Needs tokenizers, transformers (generate_merges), gguf. Small vocabularies trained on the text below; golden ids and texts
come from the Rust library behind `tokenizers`, with the pre-tokenizers spelled as the families' own tokenizer.json does.
"""
import json
from pathlib import Path

from gguf import GGUFWriter
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import generate_merges

HERE = Path(__file__).parent

CORPUS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? They'll say we've won; I'm sure HE'S right.",
    "In 2026 there were 1234567890 reasons, 3.14159 of them good, and ½ of a cap is an inch (¾ is not).",
    "naïve café déjà vu — “quotes” … 東京 한국어 ελληνικά русский עברית हिन्दी ไทย 🙂👩‍👩‍👧",
    "def f(x):\n    return x**2  # comment\n\n\tif x == y: print('%d' % x)\r\n",
    "camelCase HTTPServer XMLHttpRequest snake_case kebab-case path/to/file.txt http://example.org/a?b=c&d=e",
    "aaaa aaaaaaaa the the the there then other another brother quick quickly",
] * 4

TEXTS = [
    "", " ", "\n", "  ", "Hello, world!", "The capital of France is Paris.",
    " leading and  double  spaces\n\n\ttabs\r\n", "trailing   ", "\n\n\n  x\n \n",
    "1234567890 3.14159 2026-11-24", "½ ½½ a½ x² ①② Ⅷ ٣٤٥ १२३ 12½34", "I'll don't we've SHE'S it'S 'Tis",
    "naïve café — “quotes” … 東京 한국어 🙂👩‍👩‍👧 \u200b", "e\u0301 vs é, Å vs Å", "a\u00a0b\u2003c\u3000d\u0085e\ufefff\u1680g",
    "def f(x):\n    return x**2  # comment\n", "camelCase HTTPServer ÉCOLE Éc ǅ aʰb", "=====----____!!!???", "$100 + 5% < 10^2 | ~x`y",
    "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|>", "a<|tool|>b <|tool|> c", "<|im_start|><|im_end|> x",
    "a" * 50, "the" * 20, "\u0000\u0001\u007f", "/path//to\n/x", "̈ combining", "ไทยไทย हिन्दी", "🙂" * 3, "<0x41>", "▁x ▁▁ y",
]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

P = pre_tokenizers
split = lambda regex, behavior="isolated", invert=False: P.Split(Regex(regex), behavior, invert)
bytes_only = lambda: P.ByteLevel(add_prefix_space=False, use_regex=False)
words = lambda prefix=False: P.ByteLevel(add_prefix_space=prefix, use_regex=True)
LLAMACPP = [r"[\p{P}\$\+<=>\^~\|]+", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)", r"\p{N}+", r"[0-9][0-9][0-9]"]

# by name in tokenizer.ggml.pre: pre-tokenizer, normaliser, ignore_merges
FAMILIES = {
    "smollm": (P.Sequence([P.Digits(individual_digits=True), words()]), None, False),
    "gpt-2": (words(), None, False),
    "llama-bpe": (P.Sequence([split(LLAMA3), bytes_only()]), None, True),
    "qwen2": (P.Sequence([split(QWEN2), bytes_only()]), normalizers.NFC(), False),
    "tekken": (P.Sequence([split(TEKKEN), bytes_only()]), None, True),
    "default": (P.Sequence([split(regex) for regex in LLAMACPP] + [bytes_only()]), None, False),
}
# rules a tokenizer.json may hold that no GGUF name stands for
RULES = {
    "prefix space": P.Sequence([words(True)]),
    "digit runs": P.Sequence([P.Digits(individual_digits=False), words()]),
    "digits, then words with a space in front": P.Sequence([P.Digits(individual_digits=True), words(True)]),
    "single punctuation marks": P.Sequence([P.Punctuation("isolated"), bytes_only()]),
    "punctuation runs": P.Sequence([P.Punctuation("contiguous"), bytes_only()]),
    "kept matches": P.Sequence([split(GPT2, "removed", True), bytes_only()]),
    "inverted isolation": P.Sequence([split(r"\p{L}+", "isolated", True), bytes_only()]),
    "whitespace": P.Sequence([P.Whitespace(), bytes_only()]),
    "whitespace split": P.Sequence([P.WhitespaceSplit(), bytes_only()]),
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def golden(tokenizer):
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    decoded = [tokenizer.decode(row, skip_special_tokens=False) for row in ids]
    assert all(isinstance(text, str) for text in decoded)
    return {"ids": ids, "decoded": decoded, "skipped": [tokenizer.decode(row, skip_special_tokens=True) for row in ids]}


def write_gguf(path, model, tokens, types, extra):
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level():
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = P.Sequence([split(TEKKEN), bytes_only()])
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL + ["<|tool|>"], initial_alphabet=P.ByteLevel.alphabet()))
    model = json.loads(trained.to_str())["model"]
    # a whole word that merging cannot reach: what ignore_merges is for
    vocab = {**model["vocab"], "Ġcapital": len(model["vocab"])}
    merges = [tuple(pair) for pair in model["merges"]]
    tokens = sorted(vocab, key=vocab.get)

    def build(pre, normalizer=None, ignore_merges=False):
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
        tokenizer.add_tokens([AddedToken("<|tool|>", special=False, normalized=False)])
        return tokenizer

    types = [3 if token in SPECIAL else 4 if token == "<|tool|>" else 1 for token in tokens]

    def extra(writer):
        writer.add_tokenizer_pre("smollm")
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(1), writer.add_eos_token_id(2), writer.add_unk_token_id(0)
        writer.add_chat_template(TEMPLATE)

    write_gguf(HERE / "bytes.gguf", "gpt2", tokens, types, extra)
    smollm = build(*FAMILIES["smollm"])
    smollm.save(str(HERE / "bytes.json"))
    broken = [[vocab[c] for c in row] for row in (["ð", "Ł", "Ļ"], ["Ã", "a"], ["æ", "Ŀ", "±", "æ", "Ŀ"], ["ÿ", "Ã", "<|im_end|>", "©"])]
    return {
        "families": {name: golden(build(*row)) for name, row in FAMILIES.items()},
        "rules": {name: {"rule": json.loads(build(rule).to_str())["pre_tokenizer"], **golden(build(rule))} for name, rule in RULES.items()},
        "broken": [{"ids": ids, "decoded": smollm.decode(ids, skip_special_tokens=False)} for ids in broken],
    }


def sentence_piece():
    mark = "▁"
    normalizer = normalizers.Sequence([normalizers.Prepend(mark), normalizers.Replace(" ", mark)])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.pre_tokenizer = P.Split(mark, "merged_with_next")
    trained.train_from_iterator(CORPUS[:2], trainers.BpeTrainer(vocab_size=300, min_frequency=2))
    model = json.loads(trained.to_str())["model"]
    alphabet = [token for token in model["vocab"] if len(token) == 1]
    merged = ["".join(pair) for pair in model["merges"]]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + merged + [mark * 2, mark * 3] + alphabet
    # scores repeat in pairs, so that the order of equal ones counts
    scores = [0.0] * 259 + [-float(rank // 2) for rank in range(len(merged) + 2)] + [-1000.0 - rank for rank in range(len(alphabet))]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259)
    vocab = {piece: index for index, piece in enumerate(pieces)}
    assert len(vocab) == len(pieces)
    merges = generate_merges(vocab, list(zip(pieces, scores)))

    def extra(writer):
        writer.add_token_scores(scores)
        writer.add_bos_token_id(1), writer.add_eos_token_id(2), writer.add_unk_token_id(0)

    write_gguf(HERE / "pieces.gguf", "llama", pieces, types, extra)

    def build(normalizer, pre, decoder, post=None):
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        if pre is not None:
            tokenizer.pre_tokenizer = pre
        tokenizer.decoder = decoder
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
        if post is not None:
            tokenizer.post_processor = post
        return tokenizer

    D = decoders
    llama = build(normalizer, None, D.Sequence([D.Replace(mark, " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)]))
    bos = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    variants = {
        "first": build(None, P.Metaspace(mark, "first", False), D.Sequence([D.Replace(mark, " "), D.ByteFallback(), D.Fuse()]), bos),
        "always, split": build(None, P.Metaspace(mark, "always", True), D.Metaspace(mark, "always", True)),
        "never": build(None, P.Metaspace(mark, "never", True), D.Metaspace(mark, "never", True)),
    }
    broken = [[vocab[c] for c in row] for row in (["<0xF0>", "<0x9F>", "<0x99>", "a"], ["<0xC3>", "<0xA9>"], ["<0xC3>", "<0xA9>", "<0xC3>"], [mark, mark * 2, "a"])]
    parts = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
    return {
        "merges": merges,
        "llama": golden(llama),
        "variants": {name: {"parts": {part: json.loads(row.to_str())[part] for part in parts}, **golden(row)} for name, row in variants.items()},
        "broken": [{"ids": ids, "decoded": llama.decode(ids, skip_special_tokens=False)} for ids in broken],
    }


if __name__ == "__main__":
    golden_texts = {"texts": TEXTS, "bytes": byte_level(), "pieces": sentence_piece()}
    (HERE / "golden.json").write_text(json.dumps(golden_texts, ensure_ascii=True))
