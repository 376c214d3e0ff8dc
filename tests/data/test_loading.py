"""Loading processes: what they send arrives as it was, and as few tensors."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from camify.data import collate


class Boxed(Dataset):
    """Samples of 0, 1, 2, ... boxes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> dict:
        boxes = torch.arange(4.0 * (index % 4)).view(-1, 4) + index
        if self.kind == "mixed" and index % 2:
            boxes = boxes.double()
        if self.kind == "annotated":
            boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(9, 9))
        sample = {"image": torch.full((1, 2, 2), float(index)), "label": index}
        return sample if self.kind == "missing" and index % 2 else {**sample, "boxes": boxes}


def sent(data: Dataset, workers: int) -> list[dict]:
    return list(DataLoader(data, batch_size=4, num_workers=workers, collate_fn=collate))


@pytest.mark.parametrize("kind", ["plain", "missing", "mixed", "annotated"])
def test_boxes_of_loading_processes_are_those_of_one_process(kind):
    for got, expected in zip(sent(Boxed(kind), 2), sent(Boxed(kind), 0), strict=True):
        assert type(got["boxes"]) is list
        for own, wanted in zip(got["boxes"], expected["boxes"], strict=True):
            assert type(own) is type(wanted)
            assert own.dtype == wanted.dtype
            assert torch.equal(own, wanted)
        assert torch.equal(got["image"], expected["image"])


def test_boxes_of_a_batch_arrive_as_one_tensor():
    """Each tensor that is sent takes a file and a connection."""

    def pieces(batch: dict) -> int:
        return len({own.untyped_storage().data_ptr() for own in batch["boxes"] if len(own)})

    assert [pieces(batch) for batch in sent(Boxed("plain"), 1)] == [1, 1, 0]
    assert [pieces(batch) for batch in sent(Boxed("plain"), 0)] == [3, 3, 0]
