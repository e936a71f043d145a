"""The model-level cases: which preset, which sequences, what is recorded."""
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import torch

from golden_io import Value
from golden_samples import Recipe
from presets import Preset
from reasoning import CLASSES, BatchLoss, Reasoning

Tensor = torch.Tensor


@dataclass(frozen=True)
class Case:
    name: str
    preset: str
    recipes: Tuple[Recipe, ...]
    about: str
    changes: Dict[str, Any] = field(default_factory=dict)
    form: str = "cached"
    gradients: str = "all"            # 'all' | 'text' (no vision tower) | 'none'


TWO_IMAGES_3 = Recipe([(97, 131), (150, 80)], stage=3)
NO_IMAGE_1 = Recipe([], stage=1, prompt=5)
ONE_IMAGE_1 = Recipe([(70, 200)], stage=1, prompt=14, steps=(2, 3))
NO_IMAGE_0 = Recipe([], stage=0, prompt=17, answer=2)
TWO_IMAGES_0 = Recipe([(60, 90), (84, 84)], stage=0, prompt=6)
ONE_IMAGE_3 = Recipe([(180, 100)], stage=3, last_stage=True, prompt=8)
NO_IMAGE_3_PADDED = Recipe([], stage=3, prompt=7, steps=(4,), pad_latents=True)
SQUARE_3 = Recipe([(112, 112)], stage=3)                    # 4x4 merged grid, the official preset's fixed grid here
SQUARE_1 = Recipe([(112, 112)], stage=1, prompt=12, steps=(2, 2))
SMALL_4 = Recipe([(84, 84)], stage=4, steps=(1, 1, 1, 1, 2))   # 9 tokens, K = 4: 4, 4, 1, none

CASES: List[Case] = [
    Case("default_a", "default", (TWO_IMAGES_3, NO_IMAGE_1), "two images and T_r 3 beside no image and T_r 1"),
    Case("default_b", "default", (ONE_IMAGE_1, NO_IMAGE_0), "T_r 1 beside T_r 0", gradients="text"),
    Case("default_c", "default", (TWO_IMAGES_0, ONE_IMAGE_3), "two images with T_r 0 beside the last stage", gradients="text"),
    Case("default_d", "default", (NO_IMAGE_3_PADDED, ONE_IMAGE_1), "padded latents without image", gradients="text"),
    Case("default_exhausted", "default", (SMALL_4,), "patches run out: blocks of 4, 4, 1 and none", gradients="text"),
    Case("default_soft_mix", "default", (TWO_IMAGES_3, NO_IMAGE_1), "one mixed token per block", {"mode": "soft-mix"}, gradients="text"),
    Case("default_prefix_topk", "default", (TWO_IMAGES_3, NO_IMAGE_1), "rule prefix-topk", {"rule": "prefix-topk"}, gradients="text"),
    Case("default_depth3", "default", (TWO_IMAGES_3, NO_IMAGE_1), "three passes by threshold", {"max_depth": 3}, gradients="text"),
    Case("default_depth3_topk", "default", (TWO_IMAGES_3, NO_IMAGE_1), "three passes by prefix-topk",
         {"rule": "prefix-topk", "max_depth": 3, "alpha": 9}, gradients="text"),
    Case("default_detached", "default", (TWO_IMAGES_3, NO_IMAGE_1), "latentGradient detached", {"latent_gradient": "detached"}, gradients="text"),
    Case("default_saliency_detached", "default", (TWO_IMAGES_3, NO_IMAGE_1), "no gradient through the replay weights",
         {"saliency_gradient": "detached"}, gradients="all"),
    Case("default_no_replay", "default", (TWO_IMAGES_3, NO_IMAGE_1), "latents without replay", {"replay": False}, gradients="text"),
    Case("default_no_routing", "default", (TWO_IMAGES_3, NO_IMAGE_1), "replay without routing", {"routed_layers": ()}, gradients="text"),
    Case("plain", "default", (TWO_IMAGES_0, NO_IMAGE_0), "the backbone alone: explicit words, no routing", {"routed_layers": (), "replay": False}),
    Case("paper_a", "paper", (TWO_IMAGES_3, NO_IMAGE_1), "paper preset, whole prefix recomputed", form="full"),
    Case("paper_cached_no_routing", "paper", (TWO_IMAGES_3, NO_IMAGE_1), "paper preset without routing has a cached form",
         {"routed_layers": ()}, gradients="text"),
    Case("official_a", "official", (SQUARE_3, NO_IMAGE_1), "released code, square image", form="full"),
    Case("official_b", "official", (SQUARE_1, SQUARE_3), "released code, two square images of different T_r", form="full", gradients="text"),
    Case("official_two_images", "official", (Recipe([(97, 131), (112, 112)], stage=2),), "only the last image is looked at",
         form="full", gradients="text"),
    Case("official_explicit", "official", (Recipe([(112, 112)], stage=0),), "stage 0: words only, 1-D positions", form="full", gradients="text"),
    Case("official_no_routing", "official", (SQUARE_3,), "the released Qwen2-VL: its routed layers are commented out",
         {"routed_layers": ()}, gradients="text"),
    Case("official_ordered", "official", (SQUARE_3,), "released code with the write-back order repaired",
         {"misordered": False}, form="full", gradients="text"),
    # Latents alone. New cases go to the end: a case's number seeds its samples.
    Case("latents", "default", (TWO_IMAGES_3, NO_IMAGE_1, ONE_IMAGE_1, NO_IMAGE_0), "latents of a ragged batch: T_r 3, 1, 1 and 0; two, no, one and no image",
         {"routed_layers": (), "replay": False}),
    Case("latents_detached", "default", (TWO_IMAGES_3, NO_IMAGE_1), "latentGradient detached, no replay, no routing",
         {"routed_layers": (), "replay": False, "latent_gradient": "detached"}, gradients="text"),
    Case("latents_last_stage", "default", (ONE_IMAGE_3, TWO_IMAGES_0, NO_IMAGE_3_PADDED), "last stage beside explicit words beside padded latents",
         {"routed_layers": (), "replay": False}, gradients="text"),
]


def margins(loss: BatchLoss) -> Dict[str, float]:
    """Distance to the nearest tie of every discrete choice; test data must stay well above float32's error."""
    saliency = [t.margin for s in loss.sequences for t in s.steps if t is not None]
    routing = [t.margin for s in loss.sequences for t in s.routing.values()]
    return {"saliency": min(saliency, default=float("inf")), "routing": min(routing, default=float("inf"))}


def collect_sequence(prefix: str, s: Reasoning, layers: int, form: str) -> Dict[str, Value]:
    out: Dict[str, Value] = {
        "positions": s.positions, "delta": s.prompt.delta, "classes": [CLASSES.index(c) for c in s.classes],
        "embeds": s.embeds, "image_tokens": s.prompt.tokens, "hidden": s.hidden, "latent_inputs": s.latents,
        "logits": s.logits, "losses": s.losses, "next_logits": s.next_logits, "tokens_forwarded": s.tokens_forwarded,
        "image_columns": [c for p in s.prompt.pictures for c in p.columns],
        "image_grids": [v for p in s.prompt.pictures for v in p.grid]}
    for layer in range(layers):
        parts = [run.layer_inputs[layer] for run in s.runs]
        out[f"layer{layer}.input"] = parts[-1] if form == "full" else torch.cat(parts)
    for number, run in enumerate(s.runs):
        out[f"run{number}.last_row"] = run.last_row
    for (layer, depth), trace in sorted(s.routing.items()):
        name = f"layer{layer}.pass{depth}."
        out.update({name + "candidates": trace.candidates, name + "scores": trace.scores, name + "routed": trace.routed,
                    name + "gates": trace.gates})
    for number, t in enumerate(s.steps):
        name = f"step{number}."
        out[name + "replayed"] = 0 if t is None else t.block.shape[0]
        if t is not None:
            out.update({name + "saliency": t.saliency, name + "selected": t.selected, name + "weights": t.weights,
                        name + "window": [t.window_image, *t.window, t.count], name + "box": list(t.box),
                        name + "crop": t.crop, name + "u": t.target, name + "b": t.sr_input, name + "f": t.sr_output,
                        name + "sr_loss": t.sr_loss[None], name + "block": t.block})
    if s.sr_loss is not None:
        out["sr_loss"] = s.sr_loss[None]
    return {prefix + k: v for k, v in out.items()}


def collect_batch(loss: BatchLoss, layers: int, form: str) -> Dict[str, Value]:
    out: Dict[str, Value] = {"loss.cross_entropy": loss.cross_entropy[None], "loss.sr": loss.sr[None], "loss.total": loss.total[None]}
    for i, s in enumerate(loss.sequences):
        out.update(collect_sequence(f"s{i}.", s, layers, form))
    return out


def keep_gradients(gradients: Mapping[str, Tensor], which: str) -> Dict[str, Tensor]:
    return {"grad." + k: g for k, g in gradients.items() if which == "all" or not k.startswith("visual.")}
