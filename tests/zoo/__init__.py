"""Every model of timm and torchvision, and what must hold for each of them."""
