"""Run on two ranks by test_every_module.py: steps of models on a backbone of timm as replicas (DDP).

Prints a line a case, on the main rank. DDP raises an error where a parameter got no gradient in the step before.
"""

import torch
import torch.distributed as dist
from small_models import assemble, images
from torch.nn.parallel import DistributedDataParallel

from mim.structures import ImageSpec

IMAGE = ImageSpec(3, 64, 64)
HIERA = ("embed_dim=8", "stages=[1,1,2,1]")
CASES = {
    "convnext": ("sparse", "unet", {"model": "test_convnext2", "options": ()}, {"width": 32}),
    "hiera": ("drop", "transformer", {"model": "hiera_tiny_224", "options": HIERA}, {}),
}

if __name__ == "__main__":
    dist.init_process_group("gloo")
    for case, (hidden, head, keys, head_keys) in CASES.items():
        model = assemble(
            "random",
            "timm",
            hidden,
            head,
            image=IMAGE,
            encoder_keys=keys,
            head_keys=head_keys,
            masker_keys={"cell": 32},
        )
        replica = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(replica.parameters(), 0.01)
        for step in range(2):
            img_BCHW = images(4, IMAGE, 2 * step + dist.get_rank())
            mask = model.sample_mask(img_BCHW, torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            replica(img_BCHW, mask).loss.backward()
            optimizer.step()
        total = torch.stack([parameter.detach().double().sum() for parameter in model.parameters()]).sum()
        totals = [torch.zeros_like(total) for _ in range(2)]
        dist.all_gather(totals, total)
        if dist.get_rank() == 0:
            print(case, "equal" if torch.equal(*totals) else totals, flush=True)
    dist.destroy_process_group()
