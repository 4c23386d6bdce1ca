"""Tokenizers of each kind, and a page of text on which their ids are compared."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from supernet.tokenizer import Tokenization, train_tokenizer

SHARED = Path(__file__).parents[2] / "shared" / "data"
STORIES = SHARED / "stories260k" / "tok512.model"  # of karpathy's llama2.c

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BEGIN, END, TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"

PAGE = [
    "Once upon a time, there was a little girl named Lily. She'd say: \"It's Tom's\", they'll, WE'RE, I'M, won't.",
    'def main(argv):\n\treturn {\'a\': 1_000, "b": [x**2 for x in range(10)]}  # x != y -> z\n',
    "if (a && b || !c) { return &d[0]; } /* <tag attr='v'/> */\n\n\n\t\t}\r\n\r\n    else\r\n",
    "emoji 🌍🚀 👩‍👩‍👧‍👦 🇩🇪 ❤️ ☃; combining: e\u0301 n\u0303 a\u030a\u0323 Z͑ͫ̓ͪ̂ͫ",
    "Ελληνικά русский язык العربية עברית हिन्दी ไทย 你好,世界。 日本語テキスト 한국어 ქართული",
    "  two   three    four     five      six       seven                    many",
    " leading", "   leading", "trailing ", "trailing   ", " ", "  ", "     ", "\n", "\n\n", " \n ", "\t",
    "a\n", "\n a", "\r",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F ½ ² ٣ 四 Ⅷ 2024-01-31T12:00:00",
    "\u00a0nbsp\u2003em\u3000ideographic\u200bzero\u200d\ufeffbom \u2028line \x00nul \x07bell \x1b[0m \x7f",
    "'s 't 're 's' 'S 'T 'RE 'Ll 'x '' ' \" `",
    "literal ▁ and ▁▁ low lines _ __ ___ ▁",
    "a" * 40, "=" * 50, "-" * 17 + "\n" + "-" * 33, "ababababab" * 4, "hahahaha hohoho", "" ,
    "https://example.org/a/b?c=d&e=%20#f mail@example.org C:\\path\\to \\n \\t",
]  # fmt: skip
# Special tokens written as text: in a corpus they are text, in a prompt they are the tokens.
SPECIALS = [
    "<s>", "</s>", "a</s>b", "<s> a </s>\n", "<unk>", "<unk", "<0x0A>", "<0x41>x", "<|endoftext|>",
    "<|endoftext|>after<|endoftext|>\n", f"{BEGIN}text{END}", f"{BEGIN}{BEGIN} x {TURN}\n{TURN}", "<|eot_id",
    "<|unknown|>",
]  # fmt: skip


def corpus() -> list[str]:
    """Return texts to train on: the page and two files of ours, so that merges of every kind arise."""
    here = Path(__file__)
    return [*PAGE, here.read_text(encoding="utf-8"), (here.parent / "test_layout.py").read_text(encoding="utf-8")] * 2


def ours(vocab_size: int = 600) -> Tokenization:
    return Tokenization(train_tokenizer(corpus(), vocab_size).to_str(pretty=True))


def byte_level(splitter: pre_tokenizers.PreTokenizer, special: list[str], ignore_merges: bool = False) -> Tokenizer:
    """Return a trained byte-level BPE that splits text by any splitter."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=560, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def split_by(regex: str) -> pre_tokenizers.PreTokenizer:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), level])


def llama3(ignore_merges: bool = True) -> Tokenizer:
    """Return a tokenizer of the Llama-3 kind; special tokens come last, as there."""
    tokenizer = byte_level(split_by(LLAMA3_SPLIT), [BEGIN, END, TURN], ignore_merges)
    begin = tokenizer.token_to_id(BEGIN)
    template = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, begin)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def llama2(prefix: bool = True) -> Tokenizer:
    """Return a tokenizer of the Llama-2 kind: sentencepiece's BPE as transformers writes it, spaces as ▁."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    if not prefix:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    # Split for training only, so that no token runs over a space; the tokenizer itself merges over whole texts.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=700, special_tokens=pieces, limit_alphabet=120, show_progress=False)
    )
    content = json.loads(tokenizer.to_str())
    content["pre_tokenizer"] = None
    content["added_tokens"] = content["added_tokens"][:3]  # bytes are ordinary entries of the vocabulary
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", int(prefix), 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def folder_of(tokenizer: Tokenizer, folder: Path, **config: object) -> Path:
    """Write a folder as a model of the Hugging Face Hub has it, with things in it that nobody may read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **config}))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.6}))
    (folder / "LICENSE").write_text("Use it as you like.\n")
    (folder / "tokenization_evil.py").write_text("raise SystemExit('executed')\n")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04\x95 no pickle at all")
    return folder
