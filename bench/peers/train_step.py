"""The demo's training step in eager PyTorch, on the batches that `npm run bench -- --peer DIR` wrote: what a user would run instead.

    python3 bench/peers/train_step.py DIR [--attention eager|sdpa] [--threads 2]      needs torch, transformers, numpy

transformers' own Qwen2-VL, fp32, padded batch, AdamW, clipping to 1. Prints JSON: the first loss (it must equal plumbline's "first
loss") and the median seconds of a step. Pixel rows are made before the clock starts; plumbline's time includes making them.
"""
import argparse
import base64
import json
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import Qwen2VLForConditionalGeneration

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def patch_rows(picture):
    height, width = picture["height"], picture["width"]
    pixels = np.frombuffer(base64.b64decode(picture["pixels"]), np.uint8).reshape(height, width, 3).astype(np.float32) / 255
    pixels = ((pixels - MEAN) / STD).transpose(2, 0, 1)
    gh, gw = height // 14, width // 14
    blocks = np.stack([pixels, pixels]).reshape(1, 2, 3, gh // 2, 2, 14, gw // 2, 2, 14).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return blocks.reshape(gh * gw, 1176), (1, gh, gw)


def collate(batch, pad):
    width = max(len(s["prompt"]) + len(s["words"]) for s in batch)
    ids = torch.full((len(batch), width), pad)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    rows, grids = [], []
    for i, s in enumerate(batch):
        full, n = s["prompt"] + s["words"], len(s["prompt"])
        ids[i, :len(full)] = torch.tensor(full)
        labels[i, n:len(full)] = torch.tensor(s["words"])
        mask[i, :len(full)] = 1
        for picture in s["pictures"]:
            part, grid = patch_rows(picture)
            rows.append(part)
            grids.append(grid)
    return dict(input_ids=ids, attention_mask=mask, labels=labels, pixel_values=torch.from_numpy(np.concatenate(rows)),
                image_grid_thw=torch.tensor(grids))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--attention", default="eager", choices=["eager", "sdpa"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Qwen2VLForConditionalGeneration.from_pretrained(options.folder / "model", dtype=torch.float32, attn_implementation=options.attention)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    batches = [collate(b, model.config.get_text_config().pad_token_id or 0) for b in json.loads((options.folder / "batches.json").read_text())]
    for batch in batches:      # newer versions want to know which ids are pictures
        batch["mm_token_type_ids"] = (batch["input_ids"] == model.config.image_token_id).int()
    seconds, first = [], None
    for step in range(len(batches) + options.steps):
        start = time.perf_counter()
        optimiser.zero_grad()
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        first = float(loss) if first is None else first
        if step >= len(batches):
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "threads": options.threads,
                      "attention": options.attention, "first_loss": first, "median_seconds": float(np.median(seconds)), "steps": len(seconds)}))


if __name__ == "__main__":
    main()
