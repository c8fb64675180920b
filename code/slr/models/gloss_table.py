"""A vector for every gloss: the mean of its sub-tokens' embeddings, and the file that keeps them.

    table = gloss_means(embedding, text, glosses, "de_DGS")      # {"regen": (C,), ..., "</s>": (C,), "de_DGS": (C,)}
    write_gloss_table(folder / TABLE, table)
    rows, found = gloss_rows(read_gloss_table(folder / TABLE), classes)      # (K, C), which classes it has

Chen et al., A Simple Multi-Modality Transfer Learning Baseline for Sign Language Translation (2022),
https://arxiv.org/abs/2203.04287, section 3.3: the gloss embedding is the average of its sub-words' embeddings, of the
gloss in lower case. As in the authors' program (SLRT) the table also has the special tokens, the spoken language and
the gloss language, which starts as the spoken one.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slr.errors import Mistake
from slr.paths import shown

if TYPE_CHECKING:
    from slr.models.mbart import MBartText

TABLE = "gloss_embeddings.safetensors"
NAMES, ROWS = "glosses", "embeddings"  # in the file: a JSON list in its metadata, and the tensor


def gloss_means(embedding: Tensor, text: "MBartText", glosses: Iterable[str], gloss_language: str) -> dict[str, Tensor]:
    """{gloss in lower case: (C,)} of an embedding (V, C) that `text` numbers; first the special tokens' own rows."""
    own = {name: number for name in text.special_names if (number := text.number(name)) is not None}
    table = {name: embedding[number] for name, number in own.items()}
    table[gloss_language] = embedding[text.start]
    for gloss in sorted({gloss.lower() for gloss in glosses}):
        table[gloss] = embedding[torch.tensor(text.encode(gloss), device=embedding.device)].mean(0)
    return {name: row.detach().float().cpu().clone() for name, row in table.items()}


def gloss_rows(table: Mapping[str, Tensor], glosses: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(K, C) the glosses' vectors, zeros for those that the table lacks, and (K,) bool, which it has.

    A gloss is looked up as it is, then in lower case. Raises Mistake where it has none of them.
    """
    names = [gloss if gloss in table else gloss.lower() for gloss in glosses]
    found = torch.tensor([name in table for name in names], dtype=torch.bool)
    if not found.any():
        raise Mistake("the table of gloss embeddings is of other glosses", f"it has none of {', '.join(glosses[:4])} …",
                      "give the one that was made for this data set")
    blank = torch.zeros_like(next(iter(table.values())), dtype=torch.float32)
    return torch.stack([table[name].float() if name in table else blank for name in names]), found


def write_gloss_table(path: Path, table: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({ROWS: torch.stack(list(table.values()))}, path, {NAMES: json.dumps(list(table), ensure_ascii=False)})


def read_gloss_table(path: Path) -> dict[str, Tensor]:
    """{name: (C,)}. Raises Mistake for a file that is not there, damaged, or something else."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            names, rows = json.loads((file.metadata() or {})[NAMES]), file.get_tensor(ROWS)
        if not isinstance(names, list) or len(names) != len(rows) or rows.dim() != 2:
            raise ValueError(f"{len(names)} names for {tuple(rows.shape)} numbers")
    except Exception as error:  # safetensors has kinds of its own
        raise Mistake(f"{shown(path)} is no table of gloss embeddings", f"{type(error).__name__}: {error}"[:200],
                      "prune the model anew: that writes it") from None
    return dict(zip(names, rows, strict=True))
