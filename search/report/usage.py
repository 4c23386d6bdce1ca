"""The report's last step for the reader: what each shipped net writes, and the commands that run it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from search.report.data import Entry, ReportData
from search.report.html import Page
from search.report.nets import is_original, uncut

PROMPT = "def "  # of searches that kept no settings
N_TOKENS = 64


def add_usage(page: Page, data: ReportData, target: str) -> None:
    """Add sample text, the original's and the largest net's first, and the commands for every exported net."""
    finalists = data.finalists.get(target, [])
    others = uncut(data, target)
    samples = [(e, kind) for entries, kind in ((others, "baseline"), (finalists, "finalist")) for e in entries]
    cards = "".join(_card(e, kind) for e, kind in samples if e.get("sample"))
    if cards:
        page.add(f'<h3>Sample text</h3><p class="note">{_about(others)}</p><div class="cards">{cards}</div>')
    exported = [e for e in finalists if e.get("export")]
    prompt = str(data.settings.get("prompt", PROMPT))
    commands = "".join(_commands(data.search_dir, e, prompt, e is exported[0]) for e in exported)
    if commands:
        page.add('<h3>Commands</h3><p class="note">To be run in the folder of this page.</p>', commands)
    if not cards and not commands:
        page.add('<p class="missing">Nothing was exported, and no sample text was written.</p>')


def _about(others: Sequence[Entry]) -> str:
    text = "What the file makes of one prompt in the runtime itself, for all nets with the same random numbers."
    if any(map(is_original, others)):
        text += " <i>Original</i>: the pretrained model as it came."
    if any(e.get("fine_tuned") for e in others):
        text += " <i>Largest</i>: trained and fine-tuned as the finalists are."
    return text


def _card(entry: Entry, kind: str) -> str:
    # A model may emit control characters, which HTML forbids.
    text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(entry["sample"]))
    name = escape(str(entry["name"]))
    return f'<div><h4 class="{kind}">{name}</h4><pre>{escape(text)}</pre></div>'


def _commands(search_dir: Path, entry: Entry, prompt: str, opened: bool) -> str:
    mark = " open" if opened else ""
    folder = Path(str(entry["export"]))
    blocks = []
    if (search_dir / folder / "model.gguf").exists():
        path = (folder / "model.gguf").as_posix()
        blocks.append(f"llama-cli -m {shlex.quote(path)} -p {shlex.quote(prompt)} -n {N_TOKENS}")
        blocks.append(
            "from llama_cpp import Llama\n\n"
            f"llama = Llama({path!r}, verbose=False)\n"
            f'print(llama({prompt!r}, max_tokens={N_TOKENS})["choices"][0]["text"])'
        )
    for made in sorted((search_dir / folder).glob("*/config.json")):  # hf, pytorch_float32
        path, own_code = (folder / made.parent.name).as_posix(), _has_own_code(made)
        blocks += [_hugging_face(path, own_code, prompt), _harness(path, own_code)]
    if not blocks:
        blocks.append(f"# {folder.as_posix()} is no longer beside this page")
    code = "".join(f'<pre class="code">{escape(block)}</pre>' for block in blocks)
    name = escape(str(entry["name"]))
    return f'<details{mark}><summary><b class="finalist">{name}</b></summary>{code}</details>'


def _hugging_face(folder: str, own_code: bool, prompt: str) -> str:
    trust = ", trust_remote_code=True" if own_code else ""
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({folder!r}{trust})\n"
        f"model = AutoModelForCausalLM.from_pretrained({folder!r}{trust})\n"
        f'ids = tokenizer({prompt!r}, return_tensors="pt").input_ids\n'
        f"print(tokenizer.decode(model.generate(ids, max_new_tokens={N_TOKENS})[0]))"
    )


def _harness(folder: str, own_code: bool) -> str:
    permission = ",trust_remote_code=True" if own_code else ""
    return f"lm_eval --model hf --model_args {shlex.quote(f'pretrained={folder}{permission}')} --tasks hellaswag"


def _has_own_code(path: Path) -> bool:
    """Say whether a folder, by its config.json, ships model code, which transformers runs by permission only."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(config, Mapping) and "auto_map" in config
