"""Runs inside an environment with OpenVINO GenAI: `python openvino_rows.py FOLDER` answers FOLDER/request.json's rows.

For a CPU, on Python 3.11:

    python3.11 -m venv peer
    peer/bin/pip install torch==2.13.0+cpu openvino-genai==2026.4.1 optimum-intel==2.2.0 transformers==4.57.6
    peer/bin/pip uninstall torchvision    # a build for CUDA does not load beside torch's CPU build

The same checkpoint, exported once as optimum-intel exports Phi-3-Vision; the official code that optimum would load is
not needed. OpenVINO GenAI takes text alone, so the tokenizer it is given spells an id as a decimal number.

Its 2026.4 differs from the official code in two ways, found by computing both. It lays out a picture's crops with rows
and columns exchanged, so they are handed over such that this gives the right layout and the right number of tokens. And
its global view takes every k-th pixel where the official one interpolates: answers about pictures of several crops
differ for that, answers about pictures of one crop (`--num-crops 1`) are the same. The rotary factors of all rows of a
step are chosen by its longest, as in the official code.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig
from openvino_genai import __version__ as genai_version
from openvino_tokenizers import convert_tokenizer
from optimum.exporters.openvino.convert import export
from optimum.exporters.openvino.model_configs import get_vlm_text_generation_config
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

Request = tuple[str, list[openvino.Tensor], GenerationConfig]

FOLDER = Path(sys.argv[1])
REQUEST: dict[str, Any] = json.loads((FOLDER / "request.json").read_text())
_VISION = "model.vision_embed_tokens."
_PRECISIONS = {"bfloat16": ("BF16", "bf16"), "float16": ("FP16", "f16")}
_KV_CACHE_GB = 2
_SIDE = 336
_OFFICIAL_TOWER = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}


class Tower(nn.Module):
    """CLIP up to its last layer but one, class token dropped."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel(config).vision_model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(crops, 3, 336, 336) → (crops, 576, width)."""
        hidden = self.vision_model.pre_layrnorm(self.vision_model.embeddings(pixel_values))
        for layer in self.vision_model.encoder.layers[:-1]:
            hidden = layer(hidden, None, None)[0]
        return hidden[:, 1:]


def main() -> None:
    """Warms up, answers the rows, and writes result.json. The warm-up's rows share nothing with them."""
    exported = FOLDER / "exported"
    if not (exported / "config.json").exists():
        _export(exported)
    started_s = time.perf_counter()
    pipeline = _pipeline(exported)
    _answer(pipeline, _requests(REQUEST["warm_up"]))
    start_up_s = time.perf_counter() - started_s
    requests = _requests(REQUEST["rows"])
    cpu_started_s, started_s = time.process_time(), time.perf_counter()
    answers = _answer(pipeline, requests)
    seconds = time.perf_counter() - started_s
    cpu_s = time.process_time() - cpu_started_s
    tokens = {str(row["key"]): answer for row, answer in zip(REQUEST["rows"], answers, strict=True)}
    found = {"seconds": seconds, "cpu_s": cpu_s, "start_up_s": start_up_s, "tokens": tokens, "version": genai_version}
    (FOLDER / "result.json").write_text(json.dumps(found))


def _pipeline(exported: Path) -> ContinuousBatchingPipeline:
    scheduler = SchedulerConfig()
    scheduler.max_num_seqs = REQUEST["max_num_seqs"]
    scheduler.enable_prefix_caching = True
    scheduler.cache_size = _KV_CACHE_GB
    precision = _precision()
    common = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": REQUEST["threads"]}
    decoder = {**common, "KV_CACHE_PRECISION": precision}  # its default is 8 bits
    return ContinuousBatchingPipeline(exported, scheduler, "CPU", decoder, {}, common)


def _precision() -> str:
    """The checkpoint's where this processor computes in it, else float32, which is also what OpenVINO would choose."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    capability, precision = _PRECISIONS.get(REQUEST["dtype"], ("FP32", "f32"))
    return precision if capability in capabilities else "f32"


def _answer(pipeline: ContinuousBatchingPipeline, requests: Sequence[Request]) -> list[list[int]]:
    """Every request's tokens, in order."""
    handles = [pipeline.add_request(number, *request) for number, request in enumerate(requests)]
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return [list(handle.read_all()[0].generated_ids) for handle in handles]


def _requests(rows: Sequence[Mapping[str, Any]]) -> list[Request]:
    pictures = {file.stem: _picture(np.load(file)) for file in (FOLDER / "pictures").glob("*.npy")}
    return [
        (
            " ".join(str(token) if token >= 0 else f"<|image_{-token}|>" for token in row["input_ids"]),
            [pictures[name] for name in row["pictures"]],
            GenerationConfig(
                max_new_tokens=row["max_new_tokens"], ignore_eos=True, do_sample=False, apply_chat_template=False
            ),
        )
        for row in rows
    ]


def _picture(pixels_HW3: np.ndarray) -> openvino.Tensor:
    """rows × cols crops as a picture of cols × rows, crop by crop in the same order; see the module's docstring."""
    rows, cols = pixels_HW3.shape[0] // _SIDE, pixels_HW3.shape[1] // _SIDE
    crops = pixels_HW3.reshape(rows, _SIDE, cols, _SIDE, 3).swapaxes(1, 2)
    exchanged = crops.reshape(cols, rows, _SIDE, _SIDE, 3).swapaxes(1, 2)
    return openvino.Tensor(np.ascontiguousarray(exchanged).reshape(1, cols * _SIDE, rows * _SIDE, 3))


def _export(exported: Path) -> None:
    """Writes all that the pipeline reads; config.json last."""
    config = json.loads((FOLDER / "model" / "config.json").read_text())
    files = [load_file(file) for file in (FOLDER / "model").glob("*.safetensors")]
    weights = {name: value.float() for tensors in files for name, value in tensors.items()}
    exported.mkdir(parents=True, exist_ok=True)
    _export_vision(exported, config, weights)
    _export_decoder(exported, config, weights)
    _export_tokenizer(exported, config["vocab_size"])
    processor = {"num_crops": REQUEST["num_crops"], "image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    (exported / "preprocessor_config.json").write_text(json.dumps(processor))
    separators = {name: weights[_VISION + name].tolist() for name in ("glb_GN", "sub_GN")}
    (exported / "config.json").write_text(json.dumps(config | separators))


def _export_vision(exported: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    tower = Tower(CLIPVisionConfig(**config["img_processor"].get("vision_config", _OFFICIAL_TOWER)))
    _load(tower, weights, _VISION + "img_processor.")
    _save(
        tower, torch.zeros(2, 3, _SIDE, _SIDE), [-1, 3, _SIDE, _SIDE], exported / "openvino_vision_embeddings_model.xml"
    )
    merged, hidden = 4 * tower.vision_model.config.hidden_size, config["hidden_size"]
    projection = nn.Sequential(nn.Linear(merged, hidden), nn.GELU(), nn.Linear(hidden, hidden))
    _load(projection, weights, _VISION + "img_projection.")
    _save(projection, torch.zeros(1, 2, merged), [-1, -1, merged], exported / "openvino_vision_projection_model.xml")


def _export_decoder(exported: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    skipped = ("architectures", "model_type", "img_processor", "embd_layer", "pad_token_id")
    decoder_config = Phi3Config(**{key: config[key] for key in config if key not in skipped}, pad_token_id=None)
    decoder = Phi3ForCausalLM(decoder_config)
    _load(decoder, {name: value for name, value in weights.items() if not name.startswith(_VISION)}, "")
    ids = torch.zeros(1, 2, dtype=torch.int64)
    _save(decoder.model.embed_tokens, ids, [-1, -1], exported / "openvino_text_embeddings_model.xml")
    as_optimum_does = get_vlm_text_generation_config("phi3", decoder_config, "int64", "fp32")
    export(decoder, as_optimum_does, exported / "openvino_language_model.xml", library_name="transformers")


def _export_tokenizer(exported: Path, vocab_size: int) -> None:
    unknown = "[UNK]"
    words = models.WordLevel({**{str(token): token for token in range(vocab_size)}, unknown: vocab_size}, unknown)
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown)
    for name, model in zip(("tokenizer", "detokenizer"), convert_tokenizer(fast, with_detokenizer=True), strict=True):
        openvino.save_model(model, exported / f"openvino_{name}.xml")


def _load(module: nn.Module, weights: Mapping[str, Tensor], prefix: str) -> None:
    module.load_state_dict({name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)})
    module.eval()


def _save(module: nn.Module, example: Tensor, shape: list[int], file: Path) -> None:
    model = openvino.convert_model(module, example_input=example, input=openvino.PartialShape(shape))
    openvino.save_model(model, file, compress_to_fp16=False)


if __name__ == "__main__":
    main()
