"""Checkpoints in the formats of other libraries, each written once and kept in a cache."""

import ctypes
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Path = pathlib.Path


def cached(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, which `write` fills unless it exists; what an interrupted run left is redone."""
    if not folder.exists():
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        unfinished.rename(folder)
    return folder


def bare_model(checkpoint: Path, precision: str) -> "torch.nn.Module":
    """The model without a head: token ids and a mask in, hidden states after the final norm out."""
    import torch
    import transformers

    class LastHiddenState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
            self.model = transformers.AutoModel.from_pretrained(
                checkpoint, dtype=dtype, attn_implementation="sdpa"
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            out = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            return out.last_hidden_state

    return LastHiddenState().eval()


def example_inputs() -> dict[str, "torch.Tensor"]:
    """Two texts of which one is padded, for exporters that trace the model."""
    import torch

    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[1, 12:] = 0
    return {"input_ids": torch.arange(32).reshape(2, 16), "attention_mask": mask}


def openvino_f32(checkpoint: Path, cache: Path) -> Path:
    """OpenVINO's format, f32."""

    def write(folder: Path) -> None:
        import openvino

        # Without a mask among the example inputs the conversion fails.
        model = openvino.convert_model(
            bare_model(checkpoint, "f32"), example_input=example_inputs()
        )
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)

    return cached(cache / "openvino-f32", write)


def openvino_int8(checkpoint: Path, cache: Path) -> Path:
    """OpenVINO's format with int8 weights, symmetric, one scale for each row."""
    f32 = openvino_f32(checkpoint, cache)

    def write(folder: Path) -> None:
        import nncf
        import openvino

        model = openvino.Core().read_model(f32 / "model.xml")
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)

    return cached(cache / "openvino-int8", write)


def onnx_int8(checkpoint: Path, cache: Path) -> Path:
    """ONNX with int8 weights, and activations that are quantized at run time."""

    def write(folder: Path) -> None:
        import torch
        from onnxruntime import quantization

        exact = folder / "f32.onnx"
        axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
        inputs = example_inputs()
        torch.onnx.export(
            bare_model(checkpoint, "f32"),
            kwargs=inputs,
            f=exact,
            input_names=list(inputs),
            dynamic_shapes={name: axes for name in inputs},
            dynamo=True,
            external_data=True,
        )
        quantization.quantize_dynamic(
            exact,
            folder / "model.onnx",
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=True,
        )
        for file in folder.glob("f32.onnx*"):
            file.unlink()

    return cached(cache / "onnx-int8", write)


def gguf_quantized(checkpoint: Path, cache: Path, precision: str) -> Path:
    """GGUF at the precision that llama.cpp calls MOSTLY_…, such as q8_0 or q4_k_m."""
    exact = cached(cache / "gguf", lambda folder: write_gguf(checkpoint, folder / "model.gguf"))

    def write(folder: Path) -> None:
        import llama_cpp

        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{precision.upper()}")
        source, target = os.fsencode(exact / "model.gguf"), os.fsencode(folder / "model.gguf")
        status = llama_cpp.llama_model_quantize(source, target, ctypes.byref(options))
        if status != 0:
            raise RuntimeError(f"llama_model_quantize failed with {status}")

    return cached(cache / f"gguf-{precision}", write)


def write_gguf(checkpoint: Path, path: Path) -> None:
    """GGUF with the checkpoint's own precision."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_pooling_type(gguf.PoolingType.LAST)
    add_tokenizer(writer, checkpoint, config["vocab_size"])
    add_tensors(writer, checkpoint, config["num_hidden_layers"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: Any, checkpoint: Path, vocab_size: int) -> None:
    """The tokenizer, which llama.cpp asks for although it is given token ids."""
    import gguf

    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(tokens.index("<|endoftext|>"))


def add_tensors(writer: Any, checkpoint: Path, n_layers: int) -> None:
    """Every tensor under llama.cpp's name: matrices of a bf16 checkpoint in bf16, the rest f32."""
    import gguf
    import safetensors
    import torch

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, n_layers)
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                tensor = tensors.get_tensor(name)
                bare = name.removeprefix("model.")
                full = bare if bare == "lm_head.weight" else f"model.{bare}"
                target = names.get_name(full, try_suffixes=(".weight", ".bias"))
                if target is None:
                    raise ValueError(f"GGUF has no name for {name}")
                is_bf16 = tensor.dtype is torch.bfloat16 and tensor.ndim > 1
                kind = gguf.GGMLQuantizationType["BF16" if is_bf16 else "F32"]
                data = gguf.quants.quantize(tensor.float().numpy(), kind)
                writer.add_tensor(target, data, raw_dtype=kind)
