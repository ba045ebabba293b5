"""Shows the least that a training with DropBlock needs: a plain loop, a ResNet-18 of torchvision, a few digits.

    pip install "dropblock-inject[examples]"
    python examples/plain_loop.py

Checkpoints, resuming, mixed precision and your own images are in finetune.py.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import models, transforms

from dropblock_inject import KeepProbSchedule, inject_dropblock
from lib.command_line import add_options, errors_in_a_sentence, make_parser
from lib.data import Images, at_most, load_digits


@errors_in_a_sentence
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    add_options(parser, "max_samples", "seed", epochs=3, image_size=64)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    to_tensor = transforms.Compose([transforms.Resize(args.image_size), transforms.ToTensor()])
    digits = load_digits()
    train = DataLoader(at_most(args.max_samples, Images(digits.train, to_tensor)), batch_size=32, shuffle=True)
    val_images = at_most(args.max_samples, Images(digits.val, to_tensor))
    val = DataLoader(val_images, batch_size=32)

    model = models.resnet18(num_classes=digits.classes)  # for a fine-tuning: weights="DEFAULT", then a new model.fc
    example = torch.empty(1, 3, args.image_size, args.image_size)
    report = inject_dropblock(model, stages=[3, 4], block_size=0.5, example_input=example)
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
        print(f"epoch {epoch + 1}  accuracy {right / len(val_images):.1%}, keep_prob {keep_prob:.3f}", flush=True)


if __name__ == "__main__":
    main()
