"""mBART as a translator: transformers' model behind our interface, and its tokenizer with a pruned vocabulary.

    text = MBartText.load("pretrained_models/mBart_de", "de_DE")
    translator = build("pretrained_models/mBart_de", text, gloss_language="de_DGS")
    logits = translator(vectors, lengths, tokens)          # tokens begin with text.start, the language's token
    translator, text = MBart.from_plain(translator.plain()), MBartText.from_plain(text.plain())    # without the folder

Liu et al., Multilingual Denoising Pre-training for Neural Machine Translation (2020), https://arxiv.org/abs/2001.08210;
for signing as in Chen et al. (2022), https://arxiv.org/abs/2203.04287: the encoder reads the vectors, </s> and a token
of the gloss language, all times sqrt(width); the decoder begins with the token of the spoken language and ends in </s>.
A folder is laid out as facebook/mbart-large-cc25: config.json, sentencepiece.bpe.model, the weights; beside them, after
pruning, map_ids.json ({old id: new id}) and gloss_embeddings.safetensors.
"""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slr import paths
from slr.errors import Mistake
from slr.models.gloss_table import TABLE, read_gloss_table
from slr.models.translator import Translator, with_suffix
from slr.paths import shown

if TYPE_CHECKING:
    from transformers import MBartForConditionalGeneration

PIECES, CONFIG, ID_MAP = "sentencepiece.bpe.model", "config.json", "map_ids.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PUBLISHED = "facebook/mbart-large-cc25"
# Numbers of mBART's vocabulary, which fairseq gave: these four, then the pieces of the SentencePiece model from its
# fourth on (each number one more than there), then the languages in this order, then <mask>.
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
LANGUAGES = ("ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT", "ja_XX",
             "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK", "tr_TR", "vi_VN",
             "zh_CN")
MASK = "<mask>"
PAD, END, UNKNOWN = 1, 2, 3
OFFSET = 1


# --- where the files are ------------------------------------------------------------------------------------

def folder_of(source: Path | str) -> Path | None:
    """The folder that `source` names (relative: to the project), or None: then it can only be a name on the hub.

    Raises Mistake where it can be neither.
    """
    folder = paths.HOME / Path(source).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or not re.fullmatch(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", source):
        raise Mistake("the folder of mBART is missing", shown(folder), _advice())
    return None


def _advice() -> str:
    return (f"get {CONFIG}, {PIECES} and the weights ({' or '.join(WEIGHTS)}) of {PUBLISHED}, put them into a folder "
            "such as pretrained_models/mBart, and name that folder")


def file_of(source: Path | str, name: str) -> Path:
    """A file of a folder, or of a model on the hub, fetched where it is not in the hub's cache yet; else Mistake."""
    folder = folder_of(source)
    if folder is not None:
        if not (folder / name).is_file():
            raise Mistake(f"{shown(folder)} is no mBART", f"{name} is missing", _advice())
        return folder / name
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(str(source), name))
    except Exception as error:  # its own kinds, the connection's, the disk's
        raise _unreachable(source, error) from error


def _unreachable(source: Path | str, error: Exception) -> Mistake:
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return Mistake(f"there is no folder {source}, and the hub does not give a model of that name", first, _advice())


def read_config(source: Path | str) -> dict[str, Any]:
    """config.json. Raises Mistake where it is missing, damaged, or not of an mBART."""
    path = file_of(source, CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Mistake(f"{shown(path)} is no config of a model", f"{type(error).__name__}: {error}"[:200],
                      "get the file anew") from None
    if kind != "mbart":
        raise Mistake(f"{source} is no mBART", f"its {CONFIG} says {kind!r}", _advice())
    return config


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise Mistake("mBART needs transformers", str(error), "pip install transformers sentencepiece") from None
    return transformers


# --- text ---------------------------------------------------------------------------------------------------

class MBartText:
    """mBART's tokenizer for one language: text <-> numbers of the whole or of a pruned vocabulary.

    It is SentencePiece itself, with the normalisation that mBART was trained with. (transformers' class has none from
    version 5 on: what it makes of a full-width comma is <unk>.) A piece that was pruned away becomes <unk>.
    Raises Mistake for a language that mBART does not have, or an id map of another vocabulary.
    """

    def __init__(self, model: bytes, language: str, kept: Mapping[int, int] | None = None):
        self._model, self.language = model, language
        self._pieces = _load_pieces(model)
        count = self._pieces.get_piece_size() + OFFSET
        self._names = dict(zip(SPECIALS, range(len(SPECIALS)), strict=True))
        self._names |= {name: count + at for at, name in enumerate(self.added)}
        self._first_language, self.whole_size = count, count + len(self.added)
        self._new = None if kept is None else dict(kept)
        self._old = list(range(self.whole_size)) if kept is None else _inverse(kept, self.whole_size)
        start = self.number(language) if language in LANGUAGES else None
        if start is None:
            raise Mistake("this mBART has no such language", repr(language), f"it is one of {', '.join(LANGUAGES)}"
                          if language not in LANGUAGES else "prune the model for this language")
        self.size, self.start = len(self._old), start
        self.pad, self.end, self.unknown = PAD, END, UNKNOWN

    @classmethod
    def load(cls, source: Path | str, language: str, kept: Mapping[int, int] | None = None) -> "MBartText":
        """Out of a folder, or from the hub; with the id map `kept`, else with the folder's map_ids.json, if any."""
        folder = folder_of(source)
        if kept is None and folder is not None and (folder / ID_MAP).exists():
            kept = read_id_map(folder / ID_MAP)
        return cls(file_of(source, PIECES).read_bytes(), language, kept)

    @property
    def added(self) -> tuple[str, ...]:
        """What comes behind the pieces in the whole vocabulary."""
        return (*LANGUAGES, MASK)

    @property
    def special_names(self) -> tuple[str, ...]:
        """What stands in a table of glosses beside them."""
        return (*SPECIALS, MASK, self.language)

    @property
    def ids(self) -> dict[int, int]:
        """{number in the whole vocabulary: number}, as map_ids.json has it."""
        return {old: new for new, old in enumerate(self._old)}

    def number(self, name: str) -> int | None:
        """The number of a special token or language; None where it was pruned away."""
        whole = self._names[name]
        return whole if self._new is None else self._new.get(whole)

    def whole(self, text: str) -> list[int]:
        """The numbers in the unpruned vocabulary, without start and end."""
        return [number + OFFSET if number else UNKNOWN for number in self._pieces.encode(text)]

    def encode(self, text: str) -> list[int]:
        """The numbers without start and end."""
        whole = self.whole(text)
        return whole if self._new is None else [self._new.get(number, UNKNOWN) for number in whole]

    def decode(self, ids: Sequence[int]) -> str:
        """Up to the first end; special tokens and languages left out."""
        ids = list(ids)
        old = [self._old[number] for number in ids[:ids.index(END) if END in ids else len(ids)]]
        words = [number - OFFSET for number in old if UNKNOWN < number < self._first_language]
        return self._pieces.decode(words).strip()

    def plain(self) -> dict[str, Any]:
        """All of it as plain types, for a checkpoint: the SentencePiece model in base64, the kept ids by new number."""
        return {"kind": "mbart", "language": self.language, "model": base64.b64encode(self._model).decode(),
                "kept": None if self._new is None else self._old}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "MBartText":
        kept = plain["kept"]
        return cls(base64.b64decode(plain["model"]), plain["language"],
                   None if kept is None else {old: new for new, old in enumerate(kept)})


def _load_pieces(model: bytes) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise Mistake("mBART's tokenizer needs sentencepiece", str(error), "pip install sentencepiece") from None
    try:
        pieces = SentencePieceProcessor(model_proto=model)
        found = (pieces.unk_id(), pieces.bos_id(), pieces.eos_id())
    except (RuntimeError, OSError) as error:
        raise Mistake(f"the {PIECES} of mBART is damaged", str(error)[:200], "get the file anew") from None
    if found != (0, 1, 2):
        raise Mistake(f"the {PIECES} is not of an mBART", f"<unk>, <s> and </s> have the numbers {found}, not 0, 1, 2")
    return pieces


def _inverse(kept: Mapping[int, int], whole: int) -> list[int]:
    """Old ids by new id. Raises Mistake unless each new number is given once, and the first four stay."""
    old = {new: number for number, new in kept.items()}
    if sorted(old) != list(range(len(kept))) or any(kept.get(i) != i for i in range(len(SPECIALS))):
        raise Mistake("the id map of the pruned vocabulary is damaged", f"{len(kept)} ids do not become 0 to "
                      f"{len(kept) - 1}, {', '.join(SPECIALS)} first", "prune anew, or get the map that came with it")
    if not all(0 <= number < whole for number in kept):
        raise Mistake("the id map is of another vocabulary", f"id {max(kept)} of {whole}",
                      f"give the one that goes with this {PIECES}")
    return [old[new] for new in range(len(old))]


def read_id_map(path: Path) -> dict[int, int]:
    """{old id: new id} of a map_ids.json. Raises Mistake where it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(type(new) is int for new in found.values()):
            raise ValueError("a new id that is no whole number")
        return {int(old): new for old, new in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Mistake(f"{shown(path)} is no id map", f"{type(error).__name__}: {error}"[:200],
                      "prune the model anew: that writes it") from None


# --- the model ----------------------------------------------------------------------------------------------

class MBart(Translator):
    """See Translator. `suffix` (2, width) are the vectors of </s> and of the gloss language behind the source.

    Raises Mistake for sources (S + 2) or targets T that mBART has no positions for: 1,024 in the published one.
    """

    def __init__(self, model: "MBartForConditionalGeneration", suffix: Tensor):
        super().__init__()
        self.model = model
        self.width, self.vocabulary = model.config.d_model, model.config.vocab_size
        self.positions = model.config.max_position_embeddings  # the most tokens that it reads, or says
        self.suffix = nn.Parameter(suffix.detach().clone())

    def source(self, vectors: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """What transformers' encoder takes: inputs_embeds (N, S + 2, width), attention_mask (N, S + 2)."""
        whole, padding = with_suffix(vectors, lengths, self.suffix)
        self._check(whole.shape[1])
        return {"inputs_embeds": whole * math.sqrt(self.width), "attention_mask": (~padding).long()}

    def forward(self, vectors: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        self._check(tokens.shape[1])
        return self.model(**self.source(vectors, lengths), decoder_input_ids=tokens, use_cache=False).logits

    def decoder(self, vectors: Tensor, lengths: Tensor) -> "MBartPrefixes":
        source = self.source(vectors, lengths)
        memory = self.model.get_encoder()(**source).last_hidden_state
        return MBartPrefixes(self.model, memory, source["attention_mask"])

    def plain(self) -> dict[str, Any]:
        """What `from_plain` makes an untrained one of, of the same shape; plain types."""
        config = json.loads(self.model.config.to_json_string(use_diff=True))
        return {"kind": "mbart", "config": {key: value for key, value in config.items() if key[0] != "_"}}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "MBart":
        library = _transformers()
        model = library.MBartForConditionalGeneration(library.MBartConfig.from_dict(dict(plain["config"])))
        return cls(model, torch.zeros(2, model.config.d_model))

    def _check(self, steps: int) -> None:
        most = self.model.config.max_position_embeddings
        if steps > most:
            raise Mistake("a sequence is too long for mBART", f"{steps} tokens, it has positions for {most}",
                          "leave out the longest sentences, or search with a smaller max_length")


class MBartPrefixes:
    """Decoder of an mBART: keys and values of what was decoded stay in a cache, a row a hypothesis."""

    def __init__(self, model: "MBartForConditionalGeneration", memory: Tensor, mask: Tensor):
        caches = _transformers().cache_utils
        self.model, self.memory, self.mask = model, memory, mask
        self.cache = caches.EncoderDecoderCache(caches.DynamicCache(), caches.DynamicCache())

    def step(self, tokens: Tensor) -> Tensor:
        out = self.model(encoder_outputs=(self.memory,), attention_mask=self.mask, decoder_input_ids=tokens[:, None],
                         past_key_values=self.cache, use_cache=True)
        return out.logits[:, -1].float().log_softmax(1)

    def select(self, rows: Tensor) -> None:
        self.memory, self.mask = self.memory.index_select(0, rows), self.mask.index_select(0, rows)
        self.cache.reorder_cache(rows)


# --- builders -----------------------------------------------------------------------------------------------

def load_model(source: Path | str, **config: Any) -> "MBartForConditionalGeneration":
    """transformers' model with its weights, float32; `config` replaces what config.json says.

    Only tensors are read. Raises Mistake where it is not there, no mBART, damaged, or lacks weights.
    """
    read_config(source)
    library, folder = _transformers(), folder_of(source)
    if folder is not None and not any(list(folder.glob(f"{Path(name).stem}*{Path(name).suffix}")) for name in WEIGHTS):
        raise Mistake(f"{shown(folder)} holds no weights", f"neither {' nor '.join(WEIGHTS)} is there", _advice())
    try:
        model, info = library.MBartForConditionalGeneration.from_pretrained(
            str(folder or source), dtype=torch.float32, weights_only=True, output_loading_info=True, **config)
    except Exception as error:  # a damaged file makes them raise almost any kind
        if folder is None:
            raise _unreachable(source, error) from error
        raise Mistake(f"the weights in {shown(folder)} cannot be read",
                      f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:300],
                      "get the files anew") from error
    wrong = [*info["missing_keys"], *info.get("mismatched_keys", ())]
    if wrong:
        raise Mistake(f"the weights of {source} are not those of its {CONFIG}",
                      f"{wrong[0]} and {len(wrong) - 1} more are missing or have another shape", "get the files anew")
    return model


def build(
    source: Path | str | None,
    text: MBartText,
    *,
    gloss_language: str = "",
    pretrained: bool = True,
    dropout: float = 0.3,
    attention_dropout: float = 0.1,
    freeze_text: bool = False,
    **sizes: int,
) -> MBart:
    """The mBART of a folder or of the hub as a translator into the language of `text`.

    Args:
        source: None only with `pretrained` False: then `sizes` describe all of it.
        gloss_language: whose row in the folder's gloss embeddings the suffix ends with; without such a table, or row,
            it starts as the spoken language, as there.
        pretrained: with the weights; False reads config.json alone and starts at random.
        freeze_text: the token embedding does not learn.
        sizes: MBartConfig's (d_model, encoder_layers, …), in place of those in config.json; only where not pretrained.

    Raises Mistake where the files do not serve (see load_model) or the vocabulary is not that of `text`.
    """
    library, rates = _transformers(), {"dropout": dropout, "attention_dropout": attention_dropout}
    if pretrained and (source is None or sizes):
        raise Mistake("pretrained weights have a home and sizes of their own",
                      f"source = {source}, {', '.join(sizes) or 'no sizes'} given",
                      "leave the sizes out, and name a folder")
    if pretrained:
        model = load_model(source, **rates)  # type: ignore[arg-type]
    else:
        shape = {"vocab_size": text.size, "scale_embedding": True} if source is None else read_config(source)
        model = library.MBartForConditionalGeneration(library.MBartConfig.from_dict({**shape, **rates, **sizes}))
    if model.config.vocab_size != text.size:
        raise Mistake("mBART and its tokenizer have different vocabularies",
                      f"{model.config.vocab_size} and {text.size} tokens",
                      f"put the {ID_MAP} that goes with a pruned mBART into its folder")
    translator = MBart(model, _suffix(model, text, source, gloss_language))
    model.model.shared.requires_grad_(not freeze_text)
    return translator


def _suffix(model: "MBartForConditionalGeneration", text: MBartText, source: Path | str | None,
            gloss_language: str) -> Tensor:
    """(2, width): rows of the folder's gloss embeddings, else of mBART's own for </s> and the spoken language."""
    rows = [model.model.shared.weight[text.end], model.model.shared.weight[text.start]]
    folder = None if source is None else folder_of(source)
    if folder is not None and (folder / TABLE).is_file():
        table = read_gloss_table(folder / TABLE)
        rows = [table.get(name, row) for name, row in zip(("</s>", gloss_language), rows, strict=True)]
        if any(len(row) != model.config.d_model for row in rows):
            raise Mistake(f"{shown(folder / TABLE)} is of another model", f"vectors of {len(rows[0])} numbers, not "
                          f"{model.config.d_model}", "prune the model anew: that writes it")
    return torch.stack([row.detach().float() for row in rows])
