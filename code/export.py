"""Write a trained transcriber, or what it was pre-trained by, as folders that transformers' from_pretrained reads.

    python export.py VideoMAE phoenix2014 1 exported/videomae
    python export.py LanguageDecoder phoenix2014 1 exported/decoder --overwrite
    python export.py --checkpoint best.pth exported/encoder
    python export.py VideoMAE phoenix2014 1 exported/videomae --push_hf_hub ACCOUNT/NAME     and upload it

OUT gets config.json, model.safetensors, a model card and, of a model with words, vocab.json; a transcriber's encoder
and decoder have folders of their own in it. It is read back and compared before it stands there. A transcriber's
OUT/encoder is also what model_params.weights takes.
"""

import argparse
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slr import errors
from slr.catalogue import MODELS
from slr.errors import Mistake
from slr.paths import shown
from slr.trained import Trained, find_trained

TASKS = ("transcription", "pretraining")
CARD, VOCABULARY, FEATURES = "README.md", "vocab.json", "features.json"
# what --overwrite replaces
KNOWN = ("config.json", "model.safetensors", "generation_config.json", "encoder", "decoder", CARD, VOCABULARY, FEATURES)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] MODEL SPLIT EXP_NO OUT\n       %(prog)s [options] --checkpoint FILE OUT")
    add = parser.add_argument
    models = [name for name, entry in MODELS.items() if entry.task in TASKS]
    add("words", nargs="+", metavar="MODEL SPLIT EXP_NO OUT", help=f"MODEL is one of {', '.join(models)}; OUT a folder")
    add("--checkpoint", type=Path, metavar="FILE", help="instead of MODEL SPLIT EXP_NO")
    add("--overwrite", action="store_true", help="replace what an earlier export left in OUT")
    add("--push_hf_hub", metavar="ACCOUNT/NAME", help="also upload OUT to this place of the Hugging Face hub")
    args = parser.parse_args(words)
    own = 0 if args.checkpoint else 3
    if len(args.words) != own + 1:
        parser.error("give MODEL SPLIT EXP_NO OUT, or --checkpoint FILE and OUT")
    args.experiment = args.words[:own] or [None] * 3
    args.out = Path(args.words[own]).expanduser().resolve()
    return args


# --- where it goes ------------------------------------------------------------------------------------------

def check_out(out: Path, overwrite: bool) -> None:
    """Mistake unless OUT is new or empty, or with --overwrite holds nothing but an earlier export."""
    if not out.exists():
        return
    if not out.is_dir():
        raise Mistake("OUT is no folder", shown(out), "name another one")
    there = sorted(path.name for path in out.iterdir())
    if there and not overwrite:
        raise Mistake(f"{shown(out)} is not empty", ", ".join(there[:6]), "name another folder, or give --overwrite")
    others = [name for name in there if name not in KNOWN and not name.startswith(".")]
    if others:
        raise Mistake(f"{shown(out)} holds more than an export", ", ".join(others[:6]),
                      "nothing is replaced there: name another folder, or move those away")


def put(aside: Path, out: Path) -> None:
    """What was written aside to its place, instead of an earlier export."""
    if not out.exists():
        os.replace(aside, out)
        return
    for path in (out / name for name in KNOWN):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    for path in sorted(aside.iterdir()):
        os.replace(path, out / path.name)
    aside.rmdir()


# --- what goes there ----------------------------------------------------------------------------------------

def net_of(trained: Trained) -> Any:
    """The checkpoint's net, without its data and without DINOv2. Mistake for a MODEL that is not exported."""
    from slr.models.encoders import Rates
    from slr.models.exchange import rebuilt
    from slr.models.spatio_temporal import Spans

    config, content, rates = trained.config, trained.content, Rates()
    if config.encoder:
        keys = config.encoder
        rates = Rates(keys.dropout, keys.layerdrop, Spans(keys.mask_share, keys.mask_length, keys.mask_least))
    drop_p = config.language_decoder.dropout if config.language_decoder else 0.0
    return rebuilt(config.model, content["model_state_dict"], content.get("meta", {}), rates, drop_p,
                   shown(trained.file))


def vocabulary(meta: Mapping[str, Any]) -> dict[str, int]:
    """{word: its token}, the special ones first."""
    from slr.text import SPECIALS

    return {word: number for number, word in enumerate((*SPECIALS, *meta["tokenizer"]["words"]))}


def fill(folder: Path, net: Any, trained: Trained) -> float:
    """Write everything, and read the net back: the largest difference of what both say. Mistake where they differ."""
    from slr.models.exchange import from_export, largest_difference, write

    write(net, folder)
    meta = trained.content["meta"]
    if "tokenizer" in meta:
        (folder / VOCABULARY).write_text(json.dumps(vocabulary(meta), ensure_ascii=False, indent=0) + "\n",
                                         encoding="utf-8")
    if "mean" in (eye := meta.get("spatial") or {}):
        (folder / FEATURES).write_text(json.dumps({name: eye[name] for name in ("mean", "deviation")}) + "\n",
                                       encoding="utf-8")
    (folder / CARD).write_text(card(trained), encoding="utf-8")
    difference, close = largest_difference(net, from_export(folder))
    if not close:
        raise Mistake("what was written is another net than the checkpoint's",
                      f"their outputs differ by {difference:.3g}", "look whether the checkpoint's weights are finite")
    return difference


def export(trained: Trained, out: Path) -> float:
    """Write beside OUT, compare, put it there; the largest difference."""
    net, aside = net_of(trained), out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        difference = fill(aside, net, trained)
        put(aside, out)
    except OSError as error:
        raise Mistake(f"{shown(out)} cannot be written", error.strerror or str(error), "make room, or name another "
                      "folder") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return difference


# --- the model card -----------------------------------------------------------------------------------------

_SPOKEN = """decoder = AutoModelForCausalLM.from_pretrained(folder, subfolder="decoder").eval()
bridge = load_file(f"{folder}/model.safetensors")
seen = torch.nn.functional.linear(vectors, bridge["bridge.weight"], bridge["bridge.bias"])
tokens = decoder.generate(torch.ones(len(seen), 1, dtype=torch.long), encoder_hidden_states=seen, max_new_tokens=MOST)
"""
_IMPORTS = "import torch\nfrom safetensors.torch import load_file\nfrom transformers import AutoModelForCausalLM, "
_FEATURES = "  # (N, T, width): what DINOv2 sees of each frame"
_CLIPS = "  # clips (N, 3, T, H, W), normalised"
LOADING = {
    "SpatioTemporal": f"""{_IMPORTS}Wav2Vec2Model

encoder = Wav2Vec2Model.from_pretrained(folder, subfolder="encoder").eval()
vectors = encoder(features.flatten(1)).last_hidden_state{_FEATURES}
{_SPOKEN}""",
    "VideoMAE": f"""{_IMPORTS}VideoMAEModel

encoder = VideoMAEModel.from_pretrained(folder, subfolder="encoder").eval()
vectors = encoder(clips.transpose(1, 2)).last_hidden_state{_CLIPS}
{_SPOKEN}""",
    "ViViT": f"""{_IMPORTS}VivitModel

encoder = VivitModel.from_pretrained(folder, subfolder="encoder", add_pooling_layer=False).eval()
vectors = encoder(clips.transpose(1, 2)).last_hidden_state{_CLIPS}
{_SPOKEN}""",
    "SpatioTemporalPretrain": f"""from transformers import Wav2Vec2ForPreTraining

model = Wav2Vec2ForPreTraining.from_pretrained(folder).eval()
vectors = model.wav2vec2(features.flatten(1)).last_hidden_state{_FEATURES}
""",
    "VideoMAEPretrain": f"""from transformers import VideoMAEForPreTraining

model = VideoMAEForPreTraining.from_pretrained(folder).eval()
vectors = model.videomae(clips.transpose(1, 2)).last_hidden_state{_CLIPS}
""",
    "LanguageDecoder": """import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokens = model.generate(torch.ones(1, 1, dtype=torch.long), max_new_tokens=MOST)
""",
}


def card(trained: Trained) -> str:
    """README.md as the hub shows it: what this is, its figures, how to load it."""
    config, content = trained.config, trained.content
    meta = content["meta"]
    figures = "\n".join(f"| {part} | {name} | {value:.6g} |" for part, found in content.get("metrics", {}).items()
                        for name, value in (found or {}).items() if isinstance(value, int | float))
    most = str(min(50, meta["language_decoder"]["positions"] - 1)) if "language_decoder" in meta else ""
    words = ("\nvocab.json has the number of each token: 0 is the padding, 1 the start, 2 the end, 3 an unknown word; "
             "a sentence is its words, split at blanks.\n" if "tokenizer" in meta else "")
    return f"""---
library_name: transformers
tags:
- sign-language
---

# {config.model}, trained on {config.split}

Experiment {config.model} {config.split} {config.exp_no}, epoch {content.get("epoch", "unknown")}.

| set | figure | |
|---|---|---|
{figures}

## How to load it

`folder` is this folder.

```python
{LOADING[config.model].rstrip().replace("MOST", most)}
```

Or in the toolkit that trained it:

```python
from slr.models.exchange import from_export

net = from_export(folder)
```
{words}{_looked_at(meta)}
## Licence

The toolkit is under the MIT licence. What these weights may be used for depends on the terms of the data that they were
trained on, and of the weights that they started from.
"""


def _looked_at(meta: Mapping[str, Any]) -> str:
    """What goes into an encoder, in words."""
    if "frame_size" not in meta:
        return ""
    size, many = meta["frame_size"], meta["num_frames"]
    colours = ("less each pixel's mean over the clip, divided by 48 / 255" if meta.get("subtract_clip_mean") else
               f"normalised with mean {meta['mean']} and deviation {meta['std']}")
    lines = [f"Clips are up to {many} frames of {size} x {size} pixels, every {meta['frame_stride']}. frame of a "
             f"video, RGB from 0 to 1 {colours}."]
    if eye := meta.get("spatial"):
        source = "/".join(Path(eye["dinov2"]).parts[-2:]) if "dinov2" in eye else f"untrained, {_sizes(eye)}"
        lines.append("Each frame is seen by a frozen DINOv2, which is not part of this: "
                     f"{source} (SHA-256 of its weights {eye['weights']}); its class token behind the last layer-norm "
                     f"is the frame's features{_standardised(eye)}. Of a batch with padding the encoder also "
                     "takes attention_mask (N, T * width), 1 for the numbers of valid frames. It is exact in float32.")
    else:
        lines.append("All clips of a batch have as many frames: transformers' model takes no padding.")
    return "\n## What it looks at\n\n" + "\n\n".join(lines) + "\n"


def _sizes(eye: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in eye.items() if isinstance(value, int))


def _standardised(eye: Mapping[str, Any]) -> str:
    return f", each number less its mean and divided by its deviation, which are in {FEATURES}" if "mean" in eye else ""


# --- the hub ------------------------------------------------------------------------------------------------

def check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise Mistake("--push_hf_hub takes ACCOUNT/NAME", repr(name), "for example my-account/signs-videomae")


def push(out: Path, name: str) -> None:
    """Upload the folder; the account's own log-in is used. Mistake where that fails."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise Mistake(f"{shown(out)} is written, but pushing it needs huggingface_hub", str(error),
                      "pip install huggingface_hub") from None
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(out), commit_message="export.py")
    except Exception as error:  # the network, the log-in and the hub raise many kinds
        raise Mistake(f"{shown(out)} is written, but not pushed to {name}",
                      f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:300],
                      "log in with `hf auth login`, and give the same command with --overwrite") from error


def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    if args.push_hf_hub:
        check_name(args.push_hf_hub)
    check_out(args.out, args.overwrite)
    model, split, exp_no = args.experiment
    trained = find_trained(model, split, exp_no, args.checkpoint)
    difference = export(trained, args.out)
    print(f"{shown(args.out)}: {shown(trained.file)} as transformers reads it; read back, its output differs by "
          f"{difference:.3g} at most")
    if args.push_hf_hub:
        push(args.out, args.push_hf_hub)
        print(f"pushed to {args.push_hf_hub}")
    return errors.DONE


if __name__ == "__main__":
    errors.run(main)
