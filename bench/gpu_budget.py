"""How long a forward pass takes on a GPU at least, by counting its operations, its memory traffic and its launches.

    python3 bench/gpu_budget.py [--flops 989e12] [--bandwidth 3.35e12]

Prints the tables of bench/GPU.md, by default for an H100. Nothing is measured: each kernel takes the longer of the time
for its operations at the peak of the tensor cores and the time for its bytes at the bandwidth of the memory. The
activations of a batch are read and written once by each kernel.
"""

import argparse
from dataclasses import dataclass

# NVIDIA's data sheet of the H100 SXM: dense bf16, and HBM3.
PEAK_FLOPS, BANDWIDTH = 989e12, 3.35e12
# Time between two launches from one thread of the host, assumed.
LAUNCH_SECONDS = 3e-6
# A single text with at most so many tokens is one launch of a CUDA graph, if a layer has at most so many weights. The
# launch of a graph is assumed to take as long as the launch of a kernel.
MAX_TOKENS, MAX_WEIGHTS = 512, 32 << 20
SHAPES = [(1, 32), (32, 128), (64, 512), (8, 4096), (1, 32768)]


@dataclass
class Model:
    name: str
    c: int  # hidden size
    h: int  # heads
    k: int  # key/value heads
    d: int  # head width
    f: int  # feed-forward size
    layers: int

    def kernels(self, n_texts, length):
        """The operations and bytes of each kernel of a layer."""
        c, d, f, t = self.c, self.d, self.f, n_texts * length
        q, qkv = self.h * d, (self.h + 2 * self.k) * d

        def product(n_in, n_out, adds):
            # A result that is added is f32 and is read, too.
            out = 8 * n_out if adds else 2 * n_out
            return 2 * t * n_in * n_out, 2 * n_in * n_out + t * (2 * n_in + out)

        # Half of the keys are after the query.
        attention = 2 * n_texts * length * (length + 1) * q, t * 2 * (qkv + q)
        return {
            "norm": (4 * t * c, t * 6 * c),
            "QKV": product(c, qkv, False),
            "norm and RoPE": (10 * t * (qkv - self.k * d), t * (4 * (qkv - self.k * d) + 4 * d)),
            "attention": attention,
            "O": product(q, c, True),
            "norm 2": (4 * t * c, t * 6 * c),
            "gate and up": product(c, 2 * f, False),
            "SwiGLU": (5 * t * f, t * 6 * f),
            "down": product(f, c, True),
        }

    def weights_of_a_layer(self):
        return self.c * ((2 * self.h + 2 * self.k) * self.d + 3 * self.f)

    def seconds(self, n_texts, length, peak):
        """The least time of each kind of kernel in all layers. `peak` has the operations and bytes per second."""
        kinds = {"products": 0.0, "attention": 0.0, "rows": 0.0}
        for name, (flops, n_bytes) in self.kernels(n_texts, length).items():
            is_product = name in ("QKV", "O", "gate and up", "down")
            kind = "products" if is_product else "attention" if name == "attention" else "rows"
            # Only products and attention run on tensor cores, and nothing else is limited by operations.
            of_flops = 0.0 if kind == "rows" else flops / peak.flops
            kinds[kind] += self.layers * max(of_flops, n_bytes / peak.bandwidth)
        return kinds


MODELS = [
    Model("0.6B", 1024, 16, 8, 128, 3072, 28),
    Model("4B", 2560, 32, 8, 128, 9728, 36),
    Model("8B", 4096, 32, 8, 128, 12288, 36),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flops", type=float, default=PEAK_FLOPS, help="operations per second in bf16")
    parser.add_argument("--bandwidth", type=float, default=BANDWIDTH, help="bytes per second of the memory")
    peak = parser.parse_args()
    print("| kernel of a layer, 0.6B | GFLOP at 64×512 | MB at 64×512 | MB at 1×32 |\n|---|---|---|---|")
    large, small = MODELS[0].kernels(64, 512), MODELS[0].kernels(1, 32)
    for name, (flops, n_bytes) in large.items():
        print(f"| {name} | {flops / 1e9:.1f} | {n_bytes / 1e6:.0f} | {small[name][1] / 1e6:.2f} |")
    print("\n| model | shape | products | attention | rows | sum | launches | launching |\n|---|---|---|---|---|---|---|---|")
    for model in MODELS:
        for n_texts, length in SHAPES:
            kinds = model.seconds(n_texts, length, peak)
            is_recorded = n_texts == 1 and length <= MAX_TOKENS and model.weights_of_a_layer() <= MAX_WEIGHTS
            # The token embeddings are gathered before the graph is launched, and the last hidden state after it.
            launches = 3 if is_recorded else 9 * model.layers + 5
            times = [*kinds.values(), sum(kinds.values())]
            cells = " | ".join(f"{1e3 * seconds:.2f} ms" for seconds in times)
            print(f"| {model.name} | {n_texts}×{length} | {cells} | {launches} | {1e3 * launches * LAUNCH_SECONDS:.2f} ms |")


if __name__ == "__main__":
    main()
