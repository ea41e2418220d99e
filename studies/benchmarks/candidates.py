"""Writes the short list of networks of `biotune models`, with what timm says and counts of it.

    python studies/benchmarks/candidates.py

Parameters and multiplications are counted on the network with the classifier that it was
pre-trained with; no weights are loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import biotune_optuna.models

BACKBONES = "Goldblum et al. 2023, Battle of the Backbones (arXiv 2310.19909)"
SMALL_DATA = "Jeevan and Sethi 2024, Which Backbone to Use (arXiv 2406.05612)"
PACKAGE = "its weights come as a pip package too"
CHOSEN = {
    "mobilenetv3_large_100.ra_in1k": SMALL_DATA,
    "regnetx_004.pycls_in1k": BACKBONES,
    "efficientnet_b0.ra_in1k": BACKBONES,
    "tf_efficientnet_lite0.in1k": PACKAGE,
    "tf_efficientnet_lite1.in1k": PACKAGE,
    "tf_efficientnet_lite2.in1k": PACKAGE,
    "resnet18.a1_in1k": BACKBONES,
    "resnet50.a1_in1k": BACKBONES,
    "regnety_032.ra_in1k": SMALL_DATA,
    "tf_efficientnetv2_s.in21k_ft_in1k": SMALL_DATA,
    "convnext_tiny.fb_in22k_ft_in1k": f"{BACKBONES}; {SMALL_DATA}",
    "swinv2_tiny_window8_256.ms_in1k": BACKBONES,
    "vit_small_patch16_224.augreg_in21k_ft_in1k": BACKBONES,
    "convnext_base.fb_in22k_ft_in1k": BACKBONES,
    "swinv2_base_window12to16_192to256.ms_in22k_ft_in1k": BACKBONES,
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": BACKBONES,
    "vit_base_patch16_clip_224.openai_ft_in12k_in1k": BACKBONES,
}
SIZES = {"tiny": 6e6, "small": 30e6, "base": 100e6}


def main() -> None:
    """Count, and write the file."""
    rows = []
    for name, source in CHOSEN.items():
        config = timm.get_pretrained_cfg(name)
        assert config is not None, name
        with torch.device("meta"):
            model = timm.create_model(name).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, *config.input_size, device="meta"))
        parameters = sum(p.numel() for p in model.parameters())
        rows.append(
            {
                "name": name,
                "size": next(size for size, most in SIZES.items() if parameters < most),
                "parameters": parameters,
                "gmacs": round(counter.get_total_flops() / 2e9, 2),
                "input_size": config.input_size[-1],
                "licence": config.license,
                "source": source,
            }
        )
    rows.sort(key=lambda row: row["parameters"])
    target = Path(biotune_optuna.models.__file__).with_name("candidates.json")
    target.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
