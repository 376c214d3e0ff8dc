"""Fine-tune a classifier into a CAM-ready one: ``python train.py fit --config configs/demo.yaml``."""

from camify.cli import main

if __name__ == "__main__":
    main(module="train")
