"""The least there is to a training with DropBlock: a ResNet-18 of torchvision, scikit-learn's digits, a plain loop.

    pip install "dropblock-inject[examples]"
    python plain_loop.py

Everything around it (checkpoints, resuming, mixed precision, your own images) is in finetune.py.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import models, transforms

from dropblock_inject import KeepProbSchedule, inject_dropblock
from lib.data import Images, load_digits


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A plain training loop with DropBlock.")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--images", type=int, metavar="N", help="use so few of the images, for a quick try")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    size = 64
    to_tensor = transforms.Compose([transforms.Resize(size), transforms.ToTensor()])
    digits = load_digits()
    train = DataLoader(Images(digits.train, to_tensor, args.images), batch_size=32, shuffle=True)
    val_images = Images(digits.val, to_tensor, args.images)
    val = DataLoader(val_images, batch_size=32)

    model = models.resnet18(num_classes=digits.classes)  # for a fine-tuning: weights="DEFAULT", then a new model.fc
    report = inject_dropblock(model, stages=[3, 4], block_size=0.5, example_input=torch.empty(1, 3, size, size))
    print(report)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = KeepProbSchedule(model, total_steps=len(train) * args.epochs)
    schedule.attach(optimizer)

    for epoch in range(args.epochs):
        model.train()
        for images, labels in train:
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # keep_prob moves here
        model.eval()  # nothing is dropped now
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in val)
        keep_prob = min(schedule.get_last_keep_prob())
        print(f"epoch {epoch + 1}  accuracy {right / len(val_images):.1%}, keep_prob {keep_prob:.3f}")


if __name__ == "__main__":
    main()
