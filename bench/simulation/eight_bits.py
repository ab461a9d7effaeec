"""Simulates matrix multiplications in 8 bits on a CUDA device, and shows the accuracy that is lost.

    python bench/simulation/eight_bits.py CHECKPOINT...

Needs the packages torch and transformers. Weights and activations of all linear layers are rounded, and multiplied in
f32. The output is a Markdown table with the mean and the largest 1 - cosine to f32 over the texts. bench/GPU.md explains
it.
"""

import argparse
from collections.abc import Callable

import torch
import transformers

# Values of a group have one scale. None: all values of a row.
FORMATS = {
    "FP8 (E4M3), a scale for each row": ("fp8", None),
    "FP8 (E4M3), a scale for 128 values": ("fp8", 128),
    "int8, a scale for each row": ("int8", None),
    "int8, a scale for 64 values": ("int8", 64),
}

TEXTS = [
    "a",
    "What is gravity?",
    "The weather is lovely today, perfect for a walk in the park.",
    "今天天气真好，适合出去散步。",
    "오늘 날씨가 정말 좋네요, 산책하기 딱 좋아요.",
    "Der Himmel ist heute klar, und die Sonne scheint.",
    "SELECT name FROM users WHERE id = 7;",
    "The capital of China is Beijing. " * 8,
    "Gravity is a force that attracts two bodies towards each other. " * 12,
]


def round_to(number: str, n: int | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rounds values in groups of `n`, each with a scale that maps its largest value to the largest of the format."""
    largest = 448.0 if number == "fp8" else 127.0

    def rounded(x: torch.Tensor) -> torch.Tensor:
        groups = x.reshape(*x.shape[:-1], -1, n or x.shape[-1])
        scales = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30) / largest
        scaled = groups / scales
        values = scaled.to(torch.float8_e4m3fn).float() if number == "fp8" else scaled.round()
        return (values * scales).reshape(x.shape)

    return rounded


def vectors(checkpoint: str, rounded: Callable[[torch.Tensor], torch.Tensor] | None) -> torch.Tensor:
    """The hidden states of the texts' last tokens."""
    model = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{checkpoint}/tokenizer.json")
    for module in model.modules():
        if rounded and isinstance(module, torch.nn.Linear):
            module.weight.data = rounded(module.weight.data)
            module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
    with torch.inference_mode():
        texts = (torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS)
        return torch.stack([model(text).last_hidden_state[0, -1] for text in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="a folder")
    checkpoints = parser.parse_args().checkpoints
    exact = {checkpoint: vectors(checkpoint, None) for checkpoint in checkpoints}
    print(f"| weights and activations | {' | '.join(checkpoints)} |\n|---{'|---' * len(checkpoints)}|")
    for name, (number, n) in FORMATS.items():
        cells = []
        for checkpoint in checkpoints:
            got = vectors(checkpoint, round_to(number, n))
            lost = 1 - torch.nn.functional.cosine_similarity(got, exact[checkpoint])
            cells.append(f"{lost.mean():.1e} / {lost.max():.1e}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
