"""Train a small byte-level transformer on the source text of Python's standard library.

Run it with ``python -m helios.examples.char_lm``; interrupt it and run it again, and it goes on.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import helios

PADDING = -100  # what F.cross_entropy leaves out


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each added to what came in."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``f32[batch, length, dim]`` to the same shape."""
        q, k, v = self.qkv(self.norm[0](x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        added: torch.Tensor = self.dropout(self.mlp(self.norm[1](x)))
        return x + added


class CharLM(helios.Model):
    """A transformer that predicts the next byte of a text.

    Args:
        save_name: the name of its checkpoints.
        args: the settings of the command line.
    """

    def __init__(self, save_name: str, args: argparse.Namespace) -> None:
        super().__init__(save_name)
        self.args = args

    def setup(self, fast_init: bool = False) -> None:
        """Build the network, and say how it is trained."""
        dim, updates = self.args.dim, self.args.updates
        self.embedding = nn.Embedding(256, dim)
        self.position = nn.Parameter(torch.empty(self.args.context, dim))
        for table in (self.embedding.weight, self.position):
            nn.init.normal_(table, std=0.1)
        blocks = [Block(dim, heads=4, dropout=0.1) for _ in range(self.args.layers)]
        self.blocks = nn.Sequential(nn.Dropout(0.1), *blocks, nn.LayerNorm(dim))
        self.head = nn.Linear(dim, 256)
        rate = helios.optim.rates.warmup_cosine(4e-3, max(1, updates // 10), max(2, updates), 1e-4)
        self.optimizer = helios.optim.chain(
            clip=helios.optim.clip_by_global_norm(1.0), adamw=helios.optim.AdamW(lr=rate)
        )
        self.average = helios.optim.average(decay=0.95)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Return the logits of every next byte: ``i64[batch, length] -> f32[batch, length, 256]``.

        The length is at most the context.
        """
        x = self.embedding(text) + self.position[: text.shape[1]]
        logits: torch.Tensor = self.head(self.blocks(x))
        return logits

    def loss(self, batch: Any) -> helios.Loss:
        """Return the loss summed over the characters, and how many there are.

        Windows of unequal lengths, and accumulation, then count as one large batch would.
        """
        text, following = batch
        logits = self(text)
        total = F.cross_entropy(
            logits.flatten(0, 1), following.flatten(), ignore_index=PADDING, reduction="sum"
        )
        characters = (following != PADDING).sum()
        bits = helios.Mean(total / math.log(2), characters)
        return helios.Loss(total, characters, {"bits_per_character": bits})

    @torch.no_grad()
    def sample(self, prompt: str, length: int) -> str:
        """Return ``prompt`` and ``length`` more characters, drawn from the model."""
        self.eval()
        generator = torch.Generator().manual_seed(0)
        text = torch.tensor([list(prompt.encode())])
        for _ in range(length):
            logits = self(text[:, -self.args.context :])[0, -1]
            drawn = torch.multinomial((logits / 0.7).softmax(-1), 1, generator=generator)
            text = torch.cat([text, drawn[None]], dim=1)
        return bytes(text[0].tolist()).decode(errors="replace")


def load_data(context: int, limit: int, batch_size: int) -> helios.DataModule:
    """Cut the standard library into windows; every tenth file is held out for validation.

    Args:
        context: characters in a window; the last one of a file is shorter, and padded.
        limit: bytes to read of each file.
        batch_size: windows in a micro-batch.
    """
    splits: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for number, path in enumerate(sorted(Path(os.__file__).parent.glob("*.py"))):
        text = torch.tensor(list(path.read_bytes()[:limit]), dtype=torch.long)
        windows = splits[number % 10 == 9]
        for start in range(0, len(text) - 1, context):
            windows.append(text[start : start + context + 1])
    pairs = []
    for windows in splits:
        padded = nn.utils.rnn.pad_sequence(windows, batch_first=True, padding_value=PADDING)
        pairs.append((padded[:, :-1].clamp(min=0), padded[:, 1:]))
    return helios.data.from_datasets(*pairs, batch_size=batch_size)


def main(argv: Sequence[str] | None = None) -> float:
    """Train; return the bits per character on the files held out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=400, help="train for so many in all")
    parser.add_argument("--context", type=int, default=64, help="characters in a window")
    parser.add_argument("--dim", type=int, default=96, help="width of the network")
    parser.add_argument("--layers", type=int, default=2, help="blocks of the network")
    parser.add_argument("--limit", type=int, default=6000, help="bytes to read of each file")
    parser.add_argument("--threads", type=int, default=1, help="threads to compute on")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where files go")
    parser.add_argument("--seed", type=int, help="the seed of a new run")
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    model = CharLM("char_lm", args)
    trainer = helios.Trainer(
        train_unit="iteration",
        total_steps=args.updates,
        accumulation_steps=2,
        valid_frequency=max(1, args.updates // 4),
        chkpt_frequency=max(1, args.updates // 4),
        print_frequency=max(1, args.updates // 12),
        chkpt_root=args.runs / "checkpoints",
        enable_progress_bar=True,
        use_cpu=True,
        random_seed=args.seed,
    )
    if not trainer.fit(model, load_data(args.context, args.limit, batch_size=16)):
        raise SystemExit(1)
    bits = model.valid_metrics.get("bits_per_character", math.nan)
    model.load_state_dict(trainer.state.carry.average, strict=False)
    print(model.sample("def ", length=8 * args.context))
    return bits


if __name__ == "__main__":
    main()
